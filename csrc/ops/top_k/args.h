// From the tensors of a `top_k` or `item_ranks` call to checked, contiguous arguments for its
// kernels.
#pragma once
#include "common/dtype.h"
#include "ops/top_k/params.h"

namespace ssept {

class RankingArgs {
 public:
  ScalarType type;  // of the table

  RankingArgs(const Tensor& queries, const Tensor& table, int64_t num_items,
              const std::optional<Tensor>& seen_items, const std::optional<Tensor>& seen_offsets,
              const std::optional<Tensor>& scale)
      : type(table.scalar_type()) {
    check_devices({{"queries", &queries},
                   {"table", &table},
                   {"seen_items", pointer(seen_items)},
                   {"seen_offsets", pointer(seen_offsets)},
                   {"scale", pointer(scale)}});
    const ScalarType wide = accumulator_type(type);
    ItemTable<float>& of = sizes_.table;
    of.packed = table.dim() == 3;
    table_ = of.packed ? contiguous("table", table, {kAnySize, kAnySize, kPackedItems}, type)
                       : contiguous("table", table, {kAnySize, kAnySize}, type);
    of.rows = table.size(0) * (of.packed ? kPackedItems : 1);
    of.width = table.size(1);
    queries_ = contiguous("queries", queries, {kAnySize, of.width}, wide);
    sizes_.num_queries = queries.size(0);
    const int64_t most = std::max<int64_t>(of.rows - 1, 0);
    check(num_items >= 0 && num_items <= most, "num_items must be in 0..", most, ", got ",
          num_items);
    sizes_.num_items = num_items;
    check(seen_items.has_value() == seen_offsets.has_value(),
          "seen_items and seen_offsets must be given together");
    if (seen_items) {
      seen_items_ = contiguous("seen_items", *seen_items, {kAnySize}, ScalarType::Long);
      seen_offsets_ =
          contiguous("seen_offsets", *seen_offsets, {sizes_.num_queries + 1}, ScalarType::Long);
      sizes_.num_seen = seen_items->size(0);
    }
    if (scale) scale_ = contiguous("scale", *scale, {of.rows}, wide);
  }

  int64_t num_queries() const { return sizes_.num_queries; }
  int64_t num_items() const { return sizes_.num_items; }

  // Valid while this object lives. T must have the size and layout of `type`.
  template <class T>
  Ranking<T> ranking() const {
    using A = Accumulator<T>;
    const ItemTable<float>& of = sizes_.table;
    return {{data<T>(table_), data<A>(scale_), of.rows, of.width, of.packed},
            data<A>(queries_),
            data<int64_t>(seen_items_),
            data<int64_t>(seen_offsets_),
            sizes_.num_queries,
            sizes_.num_items,
            sizes_.num_seen};
  }

 protected:
  Ranking<float> sizes_{};  // without pointers
  Tensor table_, queries_;
  std::optional<Tensor> seen_items_, seen_offsets_, scale_;
};

class TopKArgs : public RankingArgs {
 public:
  Tensor items, scores;

  TopKArgs(const Tensor& queries, const Tensor& table, int64_t k, int64_t num_items,
           const std::optional<Tensor>& seen_items, const std::optional<Tensor>& seen_offsets,
           const std::optional<Tensor>& candidates, const std::optional<Tensor>& scale)
      : RankingArgs(queries, table, num_items, seen_items, seen_offsets, scale), k_(k) {
    check_devices({{"queries", &queries}, {"candidates", pointer(candidates)}});
    if (candidates) {
      candidates_ = contiguous("candidates", *candidates, {kAnySize}, ScalarType::Long);
      sizes_.num_items = candidates->size(0);
    }
    check(k >= 0 && k <= sizes_.num_items, "k must be in 0..", sizes_.num_items, ", got ", k);
    items = torch::stable::new_empty(queries, {sizes_.num_queries, k}, ScalarType::Long);
    scores = torch::stable::new_empty(queries, {sizes_.num_queries, k});
  }

  // As `ranking`.
  template <class T>
  TopK<T> kernel_args() const {
    return {ranking<T>(), data<int64_t>(candidates_), k_, mutable_data<int64_t>(items),
            mutable_data<Accumulator<T>>(scores)};
  }

 private:
  std::optional<Tensor> candidates_;
  int64_t k_;
};

class ItemRanksArgs : public RankingArgs {
 public:
  Tensor ranks, scores;

  ItemRanksArgs(const Tensor& queries, const Tensor& table, const Tensor& targets,
                int64_t num_items, const std::optional<Tensor>& target_scores,
                const std::optional<Tensor>& seen_items, const std::optional<Tensor>& seen_offsets,
                const std::optional<Tensor>& scale)
      : RankingArgs(queries, table, num_items, seen_items, seen_offsets, scale) {
    check_devices(
        {{"queries", &queries}, {"targets", &targets}, {"target_scores", pointer(target_scores)}});
    targets_ = contiguous("targets", targets, {sizes_.num_queries}, ScalarType::Long);
    if (target_scores)
      given_ =
          contiguous("target_scores", *target_scores, {sizes_.num_queries}, accumulator_type(type));
    ranks = torch::stable::new_empty(queries, {sizes_.num_queries, 2}, ScalarType::Long);
    scores = torch::stable::new_empty(queries, {sizes_.num_queries});
  }

  // As `ranking`.
  template <class T>
  ItemRanks<T> kernel_args() const {
    using A = Accumulator<T>;
    return {ranking<T>(), data<int64_t>(targets_), data<A>(given_), mutable_data<int64_t>(ranks),
            mutable_data<A>(scores)};
  }

 private:
  Tensor targets_;
  std::optional<Tensor> given_;
};

// Calls f.template operator()<T>() for the type of a table; Half and BFloat16 are the device's own
// types of those names.
template <class Half, class BFloat16, class F>
void dispatch_table(ScalarType type, F&& f) {
  if (type == ScalarType::Char) return f.template operator()<int8_t>();
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
            type == ScalarType::BFloat16,
        "table must be int8, float16, bfloat16, float32 or float64, got ",
        torch::headeronly::toString(type));
  dispatch_floating<Half, BFloat16>("table", type, std::forward<F>(f));
}

}  // namespace ssept
