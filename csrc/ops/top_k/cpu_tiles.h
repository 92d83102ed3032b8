// Scores of some items for some queries. Each is the sum over the elements of fma(query, item, sum)
// in their order, whatever else is scored with it and however wide the registers are, so that it
// has the same bits in every call.
#pragma once
#include <cstdint>

#include "cpu/tiles.h"
#include "ops/top_k/params.h"

namespace ssept::cpu {

// Items that are scored at once for many queries, a multiple of 3 vectors of any width; and for
// few, so that they stay in the cache nearest to a core. Packed tables are divided there, too.
constexpr int64_t kTileItems = 3 * kPackedItems, kSmallTileItems = kPackedItems;

// Queries that a tile is scored for at once.
constexpr int64_t kTileQueries = 8;

// The rows of some items, element by element. What takes and scores them is compiled once for each
// kind of registers, whoever calls it.
template <class T, int64_t ITEMS = kTileItems>
class Tile {
 public:
  using A = Accumulator<T>;

  explicit Tile(const ItemTable<T>& table);

  // Takes ITEMS rows at most, one after another.
  void take(int64_t first, int64_t count);

  // Takes these rows, ITEMS at most.
  void take(const int64_t* ids, int64_t count);

  // Prefetches the rows to take next. The hardware prefetcher does not follow the order in which a
  // transposition reads them; packed tables are read in sequence and need none. Always inlined: GCC
  // drops calls of a function that does nothing but prefetch.
  SSEPT_INLINE void prefetch(int64_t first, int64_t last) const {
    if (table_.packed) return;
    const auto* end = reinterpret_cast<const char*>(table_.row(last));
    for (auto* at = reinterpret_cast<const char*>(table_.row(first)); at < end; at += 64)
      __builtin_prefetch(at);
  }

  // The scores (count, ITEMS) for queries (count, W), kTileQueries at most; those beyond the items
  // that were taken mean nothing.
  void score(const A* queries, int64_t count, A* scores) const;

 private:
  ItemTable<T> table_;
  Buffer<A> rows_, panel_, scale_;
};

}  // namespace ssept::cpu
