// CPU kernel of `top_k`. Threads share the queries or, where these are few, the items. All compare
// by score and then by id, so that the result does not depend on how the work is shared.
#include <limits>
#include <tuple>

#include "common/library.h"
#include "cpu/panels.h"
#include "ops/top_k/args.h"
#include "ops/top_k/cpu_seen.h"
#include "ops/top_k/cpu_tiles.h"

namespace ssept::cpu {
namespace {

template <class A>
struct Scored {
  A score;
  int64_t item;
  bool operator<(const Scored& other) const {  // better
    return score > other.score || (score == other.score && item < other.item);
  }
};

// The k best so far of items that come in rising order.
template <class A>
class Best {
 public:
  // `memory` is for `capacity` items.
  Best(int64_t k, int64_t capacity, Scored<A>* memory)
      : k_(k), capacity_(capacity), found_(memory) {}

  // What the best of so many items need: what is more than k is sorted out now and then.
  static int64_t capacity(int64_t k, int64_t num_items) {
    return std::min(num_items, k + std::max<int64_t>(k / 2, 32));
  }

  // Only scores above can be among the best: with an equal one, a later item loses.
  A bound() const { return bound_; }
  bool is_finite() const { return finite_; }
  void set_not_finite() { finite_ = false; }

  void add(A score, int64_t item) {
    found_[size_++] = {score, item};
    if (size_ < capacity_ || size_ <= k_) return;
    std::nth_element(found_, found_ + k_ - 1, found_ + size_);
    size_ = k_;
    bound_ = found_[k_ - 1].score;
  }

  // Writes k, best first.
  void write(A* scores, int64_t* items) {
    std::sort(found_, found_ + size_);
    for (int64_t i = 0; i < k_; ++i) {
      const bool some = finite_ && i < size_;
      scores[i] = some      ? found_[i].score
                  : finite_ ? -std::numeric_limits<A>::infinity()
                            : std::numeric_limits<A>::quiet_NaN();
      items[i] = some ? found_[i].item : 0;
    }
  }

 private:
  int64_t k_, capacity_;
  Scored<A>* found_;
  int64_t size_ = 0;
  A bound_ = -std::numeric_limits<A>::infinity();
  bool finite_ = true;
};

// One bit for each lane of x that is not at most `bound`, as no number is at most NaN.
template <class S, class A>
SSEPT_INLINE uint32_t lanes_above(typename S::template Vec<A> x, A bound) {
  using Mask = decltype(x > x);
  using Words = typename S::template Vec<uint64_t>;
  Mask lane{};
  for (int64_t i = 0; i < S::template kLanes<A>; ++i) lane[i] = 1 << i;
  // A comparison alone would be done lane by lane where it makes a mask register.
  const Mask above = x <= typename S::template Vec<A>{} + bound ? Mask{} : lane;
  const auto words = reinterpret_cast<Words>(above);
  uint64_t bits = 0;
  for (int64_t i = 0; i < S::template kLanes<uint64_t>; ++i) bits |= words[i];
  return static_cast<uint32_t>(bits | bits >> 32);
}

// Places [begin, end) of the items, or of the candidates where there are some.
struct TileRange {
  int64_t begin, end;
  const int64_t* candidates;
  int64_t id(int64_t i) const { return candidates ? candidates[begin + i] : begin + i; }
};

// Adds the scores of a tile that may be among the best.
template <class S, int64_t ITEMS, class A>
SSEPT_INLINE void add_scores(const A* scores, const TileRange& range, const IdSet& seen,
                             Best<A>& best) {
  using Vec = typename S::template Vec<A>;
  constexpr int64_t kLanes = S::template kLanes<A>;
  Vec highest = Vec{} + best.bound(), zero{};
  for (int64_t i = 0; i < ITEMS; i += kLanes) {
    const Vec x = S::load(scores + i);
    highest = x > highest ? x : highest;
    zero += x * A(0);  // NaN where x is not finite
  }
  if (lanes_above<S, A>(highest + zero, best.bound()) == 0) return;
  const int64_t count = range.end - range.begin;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = S::load(scores + i);
    uint32_t hits = lanes_above<S, A>(x + x * A(0), best.bound());
    for (; hits != 0; hits &= hits - 1) {
      const int64_t j = i + std::countr_zero(hits);
      if (j >= count) break;
      if (!std::isfinite(scores[j])) best.set_not_finite();
      if (!(scores[j] > best.bound())) continue;
      const int64_t id = range.id(j);
      if (!seen.has(id)) best.add(scores[j], id);
    }
  }
}

// How the work is shared: by blocks of queries and, where there are fewer of them than threads, by
// parts of the items.
struct Shares {
  int64_t queries, num_blocks, tiles, num_parts;

  template <class T>
  explicit Shares(const TopK<T>& in) {
    constexpr int64_t kMostQueries = 256, kMostBytes = int64_t{4} << 20;
    const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t best_bytes = 16 * Best<float>::capacity(in.k, in.num_items);
    queries = std::min({kMostQueries, whole((in.num_queries + threads - 1) / threads, 8),
                        std::max<int64_t>(1, kMostBytes / (best_bytes + 1))});
    num_blocks = (in.num_queries + queries - 1) / queries;
    const int64_t all_tiles = whole(in.num_items, kTileItems) / kTileItems;
    const int64_t least = grain(kTileItems * in.table.width * std::min(queries, in.num_queries));
    // Rounded up: a part more than threads would leave most of the work to one of them.
    const int64_t parts = std::max<int64_t>(1, threads / num_blocks);
    tiles = std::max({(all_tiles + parts - 1) / parts, 4 * least, int64_t{1}});
    num_parts = std::max<int64_t>(1, (all_tiles + tiles - 1) / tiles);
  }
};

// The best of a part of the items for a block of queries; scores and items are (queries, k).
template <int64_t ITEMS, class T, class A = Accumulator<T>>
void rank(const TopK<T>& in, int64_t first_query, int64_t last_query, int64_t first, int64_t last,
          A* scores, int64_t* items) {
  const int64_t width = in.table.width, capacity = Best<A>::capacity(in.k, last - first);
  std::vector<Scored<A>> memory((last_query - first_query) * capacity);
  std::vector<Best<A>> best;
  std::vector<IdSet> seen;
  for (int64_t q = first_query; q < last_query; ++q) {
    best.emplace_back(in.k, capacity, memory.data() + (q - first_query) * capacity);
    const auto [ids, count] = seen_by<T>(in, q);
    seen.emplace_back(count);
    for (int64_t i = 0; i < count; ++i) seen.back().add(ids[i]);
  }
  Tile<T, ITEMS> tile(in.table);
  const Buffer<A> tile_scores(kTileQueries * ITEMS);
  for (int64_t begin = first, end; begin < last; begin = end) {
    // Where a packed table is divided, but for the first tile, as there is no item 0.
    end = std::min(last, in.candidates ? begin + ITEMS : whole(begin + 1, ITEMS));
    if (in.candidates) {
      tile.take(in.candidates + begin, end - begin);
    } else {
      tile.take(begin, end - begin);
      tile.prefetch(end, std::min(last, end + ITEMS));
    }
    for (int64_t q = first_query, rows; q < last_query; q += rows) {
      rows = std::min(kTileQueries, last_query - q);
      tile.score(in.queries + q * width, rows, tile_scores.get());
      const TileRange range{begin, end, in.candidates};
      with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
        for (int64_t r = 0; r < rows; ++r)
          add_scores<S, ITEMS>(tile_scores + r * ITEMS, range, seen[q - first_query + r],
                               best[q - first_query + r]);
      });
    }
  }
  for (int64_t q = 0; q < last_query - first_query; ++q)
    best[q].write(scores + q * in.k, items + q * in.k);
}

template <class T>
void check_candidates(const TopK<T>& in) {
  if (!in.candidates) return;
  BadId bad;
  for (int64_t i = 0; i < in.num_items; ++i) bad.usable(in.candidates[i], in.table.rows);
  bad.raise("candidates", in.table.rows);
  for (int64_t i = 0, before = 0; i < in.num_items; before = in.candidates[i++])
    check_ascending("candidates", before, in.candidates[i]);
}

// Of the k best of each part, the k best of all.
template <class A>
void merge(int64_t num_parts, int64_t num_queries, int64_t k, const A* part_scores,
           const int64_t* part_items, A* scores, int64_t* items) {
  std::vector<Scored<A>> memory(num_parts * k);
  for (int64_t q = 0; q < num_queries; ++q) {
    Best<A> best(k, num_parts * k, memory.data());
    for (int64_t part = 0; part < num_parts; ++part)
      for (int64_t i = 0; i < k; ++i) {
        const int64_t at = (part * num_queries + q) * k + i;
        if (std::isnan(part_scores[at])) best.set_not_finite();
        if (part_items[at] != 0) best.add(part_scores[at], part_items[at]);
      }
    best.write(scores + q * k, items + q * k);
  }
}

template <class T>
void run(const TopK<T>& in) {
  using A = Accumulator<T>;
  check_seen(in);
  check_candidates(in);
  if (in.num_queries * in.k == 0) return;
  const Shares shares(in);
  const bool is_whole = shares.num_parts == 1;
  const int64_t count = is_whole ? 0 : shares.num_parts * in.num_queries * in.k;
  std::vector<A> part_scores(count);
  std::vector<int64_t> part_items(count);
  const int64_t before_first = in.candidates ? 0 : 1;  // item 0 is none
  int64_t rows_at_once = 0;
  with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA { rows_at_once = S::kRows; });
  torch::stable::parallel_for(
      0, shares.num_blocks * shares.num_parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t part = task / shares.num_blocks;
          const int64_t q = task % shares.num_blocks * shares.queries;
          const int64_t last_q = std::min(q + shares.queries, in.num_queries);
          const int64_t last_place = before_first + in.num_items;
          const int64_t first = std::max(before_first, part * shares.tiles * kTileItems);
          const int64_t last =
              part + 1 == shares.num_parts ? last_place : (part + 1) * shares.tiles * kTileItems;
          const int64_t to = (part * in.num_queries + q) * in.k;
          A* scores = is_whole ? in.scores : part_scores.data();
          int64_t* items = is_whole ? in.items : part_items.data();
          const auto call =
              last_q - q < rows_at_once ? rank<kSmallTileItems, T> : rank<kTileItems, T>;
          call(in, q, last_q, first, last, scores + to, items + to);
        }
      });
  if (!is_whole)
    merge(shares.num_parts, in.num_queries, in.k, part_scores.data(), part_items.data(), in.scores,
          in.items);
}

std::tuple<Tensor, Tensor> top_k(const Tensor& queries, const Tensor& table, int64_t k,
                                 int64_t num_items, const std::optional<Tensor>& seen_items,
                                 const std::optional<Tensor>& seen_offsets,
                                 const std::optional<Tensor>& candidates,
                                 const std::optional<Tensor>& scale) {
  const TopKArgs args(queries, table, k, num_items, seen_items, seen_offsets, candidates, scale);
  dispatch_table<torch::headeronly::Half, torch::headeronly::BFloat16>(
      args.type, [&]<class T>() { run(args.kernel_args<T>()); });
  return {args.items, args.scores};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) { m.impl("top_k", TORCH_BOX(&ssept::cpu::top_k)); }
