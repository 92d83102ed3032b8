// CPU kernels of `user_item_embedding`. Tokens are split over threads; gradients of tables are
// summed row by row, so that they do not depend on the number of threads.
#include <tuple>

#include "common/library.h"
#include "cpu/occurrences.h"
#include "cpu/philox.h"
#include "cpu/vector_ops.h"
#include "ops/user_item_embedding/args.h"

namespace ssept::cpu {
namespace {

struct BadIds {
  BadId items, positions;

  void raise(const UserItemEmbeddingSizes& s) const {
    items.raise("items", s.item_rows);
    positions.raise("positions", s.position_rows);
  }
};

template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void forward(const UserItemEmbedding<T>& in, T* out, int64_t begin, int64_t end,
                               BadIds& bad) {
  const auto& s = in.size;
  std::vector<A> x(s.width);
  RowDropout dropout(in.dropout, s.width, end);
  const A scale = static_cast<A>(in.dropout.scale);
  SequenceCursor sequence(in.cu_seqlens, s.num_sequences, begin);
  for (int64_t n = begin; n < std::min<int64_t>(end, in.cu_seqlens[s.num_sequences]); ++n) {
    const int64_t position = in.positions[n];
    if (!bad.positions.usable(position, s.position_rows, /*first=*/0)) continue;
    const T* place = in.position_weight + position * s.width;
    for (int64_t i = 0; i < s.width; ++i) x[i] = static_cast<A>(place[i]);
    if (bad.items.usable(in.items[n], s.item_rows))
      add_scaled(x.data(), static_cast<A>(s.item_scale),
                 in.item_weight + in.items[n] * s.item_width, s.item_width);
    if (in.users) {
      const int64_t user = in.users[sequence.at(n)];
      if (user != 0)
        add_scaled(x.data() + s.item_width, static_cast<A>(s.user_scale),
                   in.user_weight + user * s.user_width, s.user_width);
    }
    dropout.apply(x.data(), s.width, n);
    for (int64_t i = 0; i < s.width; ++i) out[n * s.width + i] = static_cast<T>(scale * x[i]);
  }
}

// The gradient before dropout.
template <class T, class A = Accumulator<T>>
SSEPT_SIMD_CLONES void backward_dropout(const UserItemEmbedding<T>& in, const T* grad, A* undropped,
                                        int64_t begin, int64_t end) {
  const auto& s = in.size;
  RowDropout dropout(in.dropout, s.width, end);
  const A scale = static_cast<A>(in.dropout.scale);
  for (int64_t n = begin; n < end; ++n) {
    A* row = undropped + n * s.width;
    for (int64_t i = 0; i < s.width; ++i) row[i] = scale * static_cast<A>(grad[n * s.width + i]);
    dropout.apply(row, s.width, n);
  }
}

// table[row] = scale * Σ of the gradients' first columns over the tokens where `row` occurs.
template <class A>
SSEPT_SIMD_CLONES void backward_table(const A* grad, int64_t grad_width,
                                      const Occurrences& occurrences, A scale, A* table,
                                      int64_t table_width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t o = occurrences.start[row]; o < occurrences.start[row + 1]; ++o)
      add_scaled(table + row * table_width, scale, grad + occurrences.entries[o] * grad_width,
                 table_width);
}

template <class A>
SSEPT_SIMD_CLONES void backward_users(const A* grad, const Occurrences& sequences,
                                      const int32_t* cu_seqlens, const UserItemEmbeddingSizes& s,
                                      A* grad_user, int64_t begin, int64_t end) {
  for (int64_t user = begin; user < end; ++user)
    for (int64_t o = sequences.start[user]; o < sequences.start[user + 1]; ++o) {
      const int64_t b = sequences.entries[o];
      for (int64_t n = cu_seqlens[b]; n < cu_seqlens[b + 1]; ++n)
        add_scaled(grad_user + user * s.user_width, static_cast<A>(s.user_scale),
                   grad + n * s.width + s.item_width, s.user_width);
    }
}

Tensor user_item_embedding(const Tensor& item_weight, const std::optional<Tensor>& user_weight,
                           const Tensor& position_weight, const Tensor& items,
                           const std::optional<Tensor>& users, const Tensor& positions,
                           const Tensor& cu_seqlens, double dropout_p,
                           const std::optional<Tensor>& seed, int64_t site) {
  const UserItemEmbeddingArgs args(item_weight, user_weight, position_weight, items, users,
                                   positions, cu_seqlens, dropout_p, seed, site);
  const auto& s = args.size;
  const Tensor out = torch::stable::new_empty(item_weight, {s.num_tokens, s.width});
  BadIds bad;
  dispatch_floating("item_weight", args.type, [&]<class T>() {
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, s.num_sequences, s.num_tokens);
    check_users(in.users, s.num_sequences, s.user_rows);
    zero_rows_from(out, in.cu_seqlens[s.num_sequences]);
    torch::stable::parallel_for(0, s.num_tokens, grain(s.width), [&](int64_t begin, int64_t end) {
      forward<T>(in, mutable_data<T>(out), begin, end, bad);
    });
  });
  bad.raise(s);
  return out;
}

// Throws for ids that the forward would have refused, so that a direct call is as safe.
template <class T>
void check_ids(const UserItemEmbedding<T>& in) {
  const auto& s = in.size;
  check_users(in.users, s.num_sequences, s.user_rows);
  BadIds bad;
  for (int64_t n = 0; n < in.cu_seqlens[s.num_sequences]; ++n) {
    bad.items.usable(in.items[n], s.item_rows);
    bad.positions.usable(in.positions[n], s.position_rows, /*first=*/0);
  }
  bad.raise(s);
}

std::tuple<Tensor, Tensor, Tensor> user_item_embedding_backward(
    const Tensor& grad_out, const Tensor& item_weight, const std::optional<Tensor>& user_weight,
    const Tensor& position_weight, const Tensor& items, const std::optional<Tensor>& users,
    const Tensor& positions, const Tensor& cu_seqlens, double dropout_p,
    const std::optional<Tensor>& seed, int64_t site, const std::optional<Tensor>&,
    const std::optional<Tensor>& more_item, const std::optional<Tensor>& more_user) {
  const UserItemEmbeddingArgs args(item_weight, user_weight, position_weight, items, users,
                                   positions, cu_seqlens, dropout_p, seed, site);
  const auto& s = args.size;
  const Tensor grad_tensor = args.contiguous_grad(grad_out);
  const ScalarType wide = accumulator_type(args.type);
  const auto start_with = [&](const std::optional<Tensor>& more, int64_t rows, int64_t width) {
    if (!more) return torch::stable::new_zeros(grad_out, {rows, width}, wide);
    Tensor start = torch::stable::new_empty(grad_out, {rows, width}, wide);
    return torch::stable::copy_(start, *more);
  };
  const Tensor grad_item =
      start_with(args.contiguous_more_item(more_item), s.item_rows, s.item_width);
  const Tensor grad_user =
      start_with(args.contiguous_more_user(more_user), s.user_rows, s.user_width);
  const Tensor grad_position = start_with({}, s.position_rows, s.width);
  dispatch_floating("item_weight", args.type, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = args.kernel_args<T>();
    check_offsets("cu_seqlens", in.cu_seqlens, s.num_sequences, s.num_tokens);
    check_ids(in);
    const int64_t num_real = in.cu_seqlens[s.num_sequences];
    std::vector<A> grad(num_real * s.width);
    torch::stable::parallel_for(0, num_real, grain(s.width), [&](int64_t begin, int64_t end) {
      backward_dropout<T>(in, data<T>(grad_tensor), grad.data(), begin, end);
    });
    const auto sum_into = [&](const Tensor& table, int64_t rows, int64_t width, const int64_t* ids,
                              int64_t first, double scale) {
      const Occurrences occurrences(ids, num_real, rows, first);
      torch::stable::parallel_for(
          0, rows, grain((1 + num_real / (rows + 1)) * width), [&](int64_t begin, int64_t end) {
            backward_table<A>(grad.data(), s.width, occurrences, static_cast<A>(scale),
                              mutable_data<A>(table), width, begin, end);
          });
    };
    sum_into(grad_item, s.item_rows, s.item_width, in.items, /*first=*/1, s.item_scale);
    sum_into(grad_position, s.position_rows, s.width, in.positions, /*first=*/0, 1.0);
    if (!in.users) return;
    const Occurrences sequences(in.users, s.num_sequences, s.user_rows, /*first=*/1);
    torch::stable::parallel_for(0, s.user_rows,
                                grain((1 + num_real / (s.user_rows + 1)) * s.user_width),
                                [&](int64_t begin, int64_t end) {
                                  backward_users<A>(grad.data(), sequences, in.cu_seqlens, s,
                                                    mutable_data<A>(grad_user), begin, end);
                                });
  });
  return {grad_item, grad_user, grad_position};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) {
  m.impl("user_item_embedding", TORCH_BOX(&ssept::cpu::user_item_embedding));
  m.impl("user_item_embedding_backward", TORCH_BOX(&ssept::cpu::user_item_embedding_backward));
}
