// CPU kernel of `item_ranks`. Queries are split over threads.
#include <tuple>

#include "common/library.h"
#include "cpu/panels.h"
#include "ops/top_k/args.h"
#include "ops/top_k/cpu_seen.h"
#include "ops/top_k/cpu_tiles.h"

namespace ssept::cpu {
namespace {

constexpr int64_t kQueriesPerBlock = 64;

// How many scores are higher than the target's, and how many the same.
struct Counts {
  int64_t higher = 0, same = 0;
};

template <class S, class A>
SSEPT_INLINE Counts compare(const A* scores, int64_t count, A target) {
  using Vec = typename S::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  using Mask = decltype(Vec{} > Vec{});
  const Mask none{}, one = none + 1;
  Mask higher{}, same{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec x = S::load(scores + i), y = Vec{} + target;
    higher += x > y ? one : none;  // not the comparison alone: see `lanes_above`
    same += x == y ? one : none;
  }
  Counts counts;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    counts.higher += higher[lane];
    counts.same += same[lane];
  }
  for (; i < count; ++i) {
    counts.higher += scores[i] > target;
    counts.same += scores[i] == target;
  }
  return counts;
}

// The score of the target, and minus the counts of the items that do not count: the target itself
// and what the query has seen.
template <class T, class A = Accumulator<T>>
Counts start(const ItemRanks<T>& in, int64_t q, Tile<T>& tile, A* scores) {
  const auto [seen, num_seen] = seen_by<T>(in, q);
  const int64_t target = in.targets[q];
  IdSet added(num_seen + 1);
  std::vector<int64_t> ids(1, target == 0 ? 1 : target);  // a tile is not empty
  added.add(target);
  for (int64_t i = 0; i < num_seen; ++i)
    if (seen[i] <= in.num_items && seen[i] != 0 && added.add(seen[i])) ids.push_back(seen[i]);
  const bool counts_target = target != 0 && target <= in.num_items;
  Counts all;
  for (int64_t i = 0, n; i < std::ssize(ids); i += n) {
    n = std::min<int64_t>(kTileItems, std::ssize(ids) - i);
    tile.take(ids.data() + i, n);
    tile.score(in.queries + q * in.table.width, 1, scores);
    if (i == 0) in.scores[q] = in.given ? in.given[q] : target == 0 ? A(0) : scores[0];
    const int64_t skipped = i == 0 && !counts_target ? 1 : 0;
    Counts counts;
    with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
      counts = compare<S>(scores + skipped, n - skipped, in.scores[q]);
    });
    all.higher -= counts.higher;
    all.same -= counts.same;
  }
  return all;
}

template <class T, class A = Accumulator<T>>
void rank(const ItemRanks<T>& in, int64_t first, int64_t last) {
  Tile<T> tile(in.table);
  const Buffer<A> scores(kTileQueries * kTileItems);
  std::vector<Counts> counts;
  for (int64_t q = first; q < last; ++q) counts.push_back(start(in, q, tile, scores.get()));
  for (int64_t begin = 1, end; begin <= in.num_items; begin = end) {
    // Where a packed table is divided, but for the first tile, as there is no item 0.
    end = std::min(in.num_items + 1, whole(begin + 1, kTileItems));
    tile.take(begin, end - begin);
    tile.prefetch(end, std::min(in.num_items + 1, end + kTileItems));
    for (int64_t q = first, rows; q < last; q += rows) {
      rows = std::min(kTileQueries, last - q);
      tile.score(in.queries + q * in.table.width, rows, scores.get());
      with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        for (int64_t r = 0; r < rows; ++r) {
          const Counts more = compare<S>(scores + r * kTileItems, end - begin, in.scores[q + r]);
          counts[q + r - first].higher += more.higher;
          counts[q + r - first].same += more.same;
        }
      });
    }
  }
  for (int64_t q = first; q < last; ++q) {
    const auto [higher, same] = counts[q - first];
    in.ranks[2 * q] = higher;
    in.ranks[2 * q + 1] = higher + same;
  }
}

std::tuple<Tensor, Tensor> item_ranks(const Tensor& queries, const Tensor& table,
                                      const Tensor& targets, int64_t num_items,
                                      const std::optional<Tensor>& target_scores,
                                      const std::optional<Tensor>& seen_items,
                                      const std::optional<Tensor>& seen_offsets,
                                      const std::optional<Tensor>& scale) {
  const ItemRanksArgs args(queries, table, targets, num_items, target_scores, seen_items,
                           seen_offsets, scale);
  dispatch_table<torch::headeronly::Half, torch::headeronly::BFloat16>(args.type, [&]<class T>() {
    const ItemRanks<T> in = args.kernel_args<T>();
    check_seen(in);
    check_ids("targets", in.targets, in.num_queries, in.table.rows);
    if (in.table.rows < 2) {  // nor a target
      std::fill_n(in.ranks, 2 * in.num_queries, 0);
      for (int64_t q = 0; q < in.num_queries; ++q) in.scores[q] = in.given ? in.given[q] : 0;
      return;
    }
    const int64_t blocks = whole(in.num_queries, kQueriesPerBlock) / kQueriesPerBlock;
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        rank(in, block * kQueriesPerBlock,
             std::min((block + 1) * kQueriesPerBlock, in.num_queries));
    });
  });
  return {args.ranks, args.scores};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) { m.impl("item_ranks", TORCH_BOX(&ssept::cpu::item_ranks)); }
