// The CPU kernel of `shared_loss`. The tokens that share their negatives are scored by a product of
// matrices, a part of them at a time. As the gradient needs nothing more than what the loss does,
// it is computed at once, while a part's logits are in cache: they are never stored. Sums are over
// parts in their order, so that they do not depend on the number of threads.
#include <limits>
#include <tuple>

#include "common/library.h"
#include "cpu/panels.h"
#include "ops/sampled_logits/args.h"
#include "ops/sampled_logits/cpu_loss.h"
#include "ops/sampled_logits/cpu_tokens.h"

namespace ssept::cpu {
namespace {

// Tokens [begin, end), which share a set of negatives.
struct Part {
  int64_t set, begin, end;
};

// Sequences, or of tokens that all share their negatives parts whose size depends on the numbers of
// tokens and negatives only.
std::vector<Part> make_parts(const int32_t* cu_seqlens, int64_t num_sequences, int64_t num_sets,
                             int64_t num_negatives) {
  std::vector<Part> parts;
  if (num_sets == num_sequences && num_sets > 1) {
    for (int64_t b = 0; b < num_sequences; ++b)
      if (cu_seqlens[b] < cu_seqlens[b + 1]) parts.push_back({b, cu_seqlens[b], cu_seqlens[b + 1]});
    return parts;
  }
  const int64_t num_tokens = cu_seqlens[num_sequences];
  // Enough for the negatives' gradients to take no more memory than the tokens, but 16 parts at
  // least, for as many threads.
  const int64_t size = rows_per_part(num_tokens, std::min(num_negatives, num_tokens / 16));
  for (int64_t n = 0; n < num_tokens; n += size)
    parts.push_back({0, n, std::min(num_tokens, n + size)});
  return parts;
}

// What parts fill in.
template <class T, class A>
struct Results {
  A* losses;          // (N)
  A* of_positive;     // (N) gradient of the positive's logit
  A* grad_sum;        // (N) of all logits
  T* grad_hidden;     // (N, Di + Du)
  A* grad_negatives;  // for each part (K in whole kProductRows, Di in whole vectors)
};

// Computes parts, with memory for one.
template <class T, class A = Accumulator<T>>
class Parts {
 public:
  Parts(const SampledLogits<T>& in, const SampledLoss<A>& loss, int64_t num_negatives,
        Results<T, A>& out)
      : in_(in),
        loss_(loss),
        out_(out),
        count_(num_negatives),
        item_row_(whole(in.size.item_width, kMaxLanes<A>)),
        row_(kMaxLanes<A> + whole(num_negatives, kMaxLanes<A>)),
        block_rows_(std::clamp<int64_t>(whole(kBlock / row_, kProductRows),
                                        row_ < kBlock ? kLeastRows : kProductRows, kRowsPerBlock)),
        vectors_(num_negatives * in.size.item_width + 1),
        shifts_(num_negatives + 1),
        logits_(block_rows_ * row_),
        gradients_(block_rows_ * row_),
        hidden_(std::is_same_v<T, A> ? 1 : block_rows_ * in.size.width + 1),
        grad_hidden_(block_rows_ * item_row_ + 1),
        to_logits_(in.size.item_width, num_negatives),
        to_hidden_(num_negatives, in.size.item_width),
        of_hidden_(block_rows_, in.size.item_width) {
    std::fill_n(logits_.get(), block_rows_ * row_, A(0));
  }

  // Elements of `Results::grad_negatives` of a part.
  static int64_t part_size(const SampledLogitsSizes& s, int64_t num_negatives) {
    return whole(num_negatives, kProductRows) * whole(s.item_width, kMaxLanes<A>);
  }

  void compute(const Part& part, int64_t index) {
    const int64_t item_width = in_.size.item_width;
    ids_ = loss_.negatives + part.set * count_;
    with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA { this->template look_up<S>(); });
    to_logits_.pack_transposed(vectors_.get(), item_width);
    to_hidden_.pack(vectors_.get(), item_width, count_);
    A* const grad_negatives = out_.grad_negatives + index * part_size(in_.size, count_);
    for (int64_t begin = part.begin, end; begin < part.end; begin = end) {
      end = std::min(part.end, begin + block_rows_);
      const int64_t rows = end - begin;
      const A* hidden = widened(begin, end);
      to_logits_.multiply(false, rows, {hidden, in_.size.width, 1}, negatives_of(logits_), row_);
      with_simd([&]<class S>(S)
                    SSEPT_INLINE_LAMBDA { this->template compute_losses<S>(hidden, begin, end); });
      A* const gradients = negatives_of(gradients_);
      to_hidden_.multiply(false, rows, {gradients, row_, 1}, grad_hidden_.get(), item_row_);
      with_simd([&]<class S>(S)
                    SSEPT_INLINE_LAMBDA { this->template finish_hidden<S>(begin, end); });
      of_hidden_.pack(hidden, in_.size.width, rows);
      of_hidden_.multiply(begin != part.begin, whole(count_, kProductRows), {gradients, 1, row_},
                          grad_negatives, item_row_);
    }
  }

 private:
  static constexpr int64_t kBlock = 32768;   // logits of a block, so that they stay in cache
  static constexpr int64_t kLeastRows = 32;  // that a block of many negatives is read for

  // In a row of logits, the positive's stands before those of the negatives, which are aligned.
  A* negatives_of(const Buffer<A>& x) const { return x + kMaxLanes<A>; }

  const A* widened(int64_t begin, int64_t end) {
    const int64_t width = in_.size.width;
    if constexpr (std::is_same_v<T, A>) {
      return in_.hidden + begin * width;
    } else {
      for (int64_t i = 0; i < (end - begin) * width; ++i)
        hidden_.get()[i] = static_cast<A>(in_.hidden[begin * width + i]);
      return hidden_.get();
    }
  }

  // The vectors of a set of negatives, and what is to be subtracted from their logits: infinity
  // where there is no item.
  template <class S>
  SSEPT_INLINE void look_up() {
    const int64_t width = in_.size.item_width;
    for (int64_t k = 0; k < count_; ++k) {
      const bool exists = ids_[k] != 0;
      const A correction = loss_.log_q && exists ? loss_.log_q[ids_[k]] + loss_.log_num_drawn : 0;
      shifts_.get()[k] = exists ? correction : std::numeric_limits<A>::infinity();
      A* vector = vectors_ + k * width;
      if (!exists) std::fill_n(vector, width, A(0));
      const T* row = in_.item_weight + ids_[k] * width;
      for (int64_t i = 0; exists && i < width; ++i) vector[i] = static_cast<A>(row[i]);
    }
  }

  // Losses of tokens begin..end-1, and the gradients of their logits.
  template <class S>
  SSEPT_INLINE void compute_losses(const A* hidden, int64_t begin, int64_t end) {
    const auto& s = in_.size;
    const int64_t columns = count_ + 1, num_logits = (end - begin) * row_;
    SequenceCursor sequence(in_.cu_seqlens, s.num_sequences, begin);
    for (int64_t n = begin; n < end; ++n, hidden += s.width) {
      A* x = logits_ + (n - begin) * row_ + kMaxLanes<A> - 1;
      const int64_t positive = loss_.positives[n];
      if (positive == 0) {
        std::fill_n(x, columns, A(0));
        continue;
      }
      A user_term = 0;
      if (const T* user = user_row(in_, sequence.at(n)))
        user_term =
            dot<S>(hidden + s.item_width, user, s.user_width) * static_cast<A>(s.user_scale);
      x[0] = user_term + dot<S>(hidden, in_.item_weight + positive * s.item_width, s.item_width);
      if (loss_.log_q && loss_.corrects_positive) x[0] -= loss_.log_q[positive];
      const A* shifts = shifts_.get();
#pragma omp simd
      for (int64_t k = 0; k < count_; ++k) {
        const A logit = x[1 + k] + (user_term - shifts[k]);
        x[1 + k] = ids_[k] == positive ? -std::numeric_limits<A>::infinity() : logit;
      }
      prepare_logits(loss_.loss, x, columns);
    }
    exponentials<S>(loss_.loss, logits_.get(), gradients_.get(), num_logits);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t first = (n - begin) * row_ + kMaxLanes<A> - 1;
      A* y = gradients_ + first;
      const bool has_target = loss_.positives[n] != 0;
      out_.losses[n] = has_target ? finish_loss(loss_, logits_ + first, y, columns) : A(0);
      if (!has_target) std::fill_n(y, columns, A(0));
      out_.of_positive[n] = y[0];
      A sum = 0;
      if (in_.users) {
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < columns; ++k) sum += y[k];
      }
      out_.grad_sum[n] = sum;
    }
  }

  // The gradient of hidden states begin..end-1, of which there is the negatives' part.
  template <class S>
  SSEPT_INLINE void finish_hidden(int64_t begin, int64_t end) {
    const auto& s = in_.size;
    SequenceCursor sequence(in_.cu_seqlens, s.num_sequences, begin);
    std::vector<A> of_user(s.user_width);
    for (int64_t n = begin; n < end; ++n) {
      A* sum = grad_hidden_ + (n - begin) * item_row_;
      T* out = out_.grad_hidden + n * s.width;
      const int64_t positive = loss_.positives[n];
      if (positive != 0)
        add_scaled(sum, out_.of_positive[n], in_.item_weight + positive * s.item_width,
                   s.item_width);
      for (int64_t i = 0; i < s.item_width; ++i) out[i] = static_cast<T>(sum[i]);
      const T* user = user_row(in_, sequence.at(n));
      const A factor = out_.grad_sum[n] * static_cast<A>(s.user_scale);
      for (int64_t i = 0; i < s.user_width; ++i)
        out[s.item_width + i] = static_cast<T>(user ? factor * static_cast<A>(user[i]) : A(0));
    }
  }

  const SampledLogits<T>& in_;
  const SampledLoss<A>& loss_;
  Results<T, A>& out_;
  const int64_t count_, item_row_, row_, block_rows_;
  const int64_t* ids_ = nullptr;  // of the negatives
  const Buffer<A> vectors_, shifts_, logits_, gradients_, hidden_, grad_hidden_;
  Panels<A> to_logits_, to_hidden_, of_hidden_;
};

// Adds up the gradients of items begin..end-1: of negatives part by part, of positives token by
// token.
template <class S, class T, class A = Accumulator<T>>
SSEPT_INLINE void add_items(const SampledLogits<T>& in, const Results<T, A>& from,
                            int64_t part_size, int64_t num_negatives, const Occurrences& negatives,
                            const Occurrences& positives, A* grad_item, int64_t begin,
                            int64_t end) {
  const auto& s = in.size;
  const int64_t row = whole(s.item_width, kMaxLanes<A>);
  for (int64_t item = begin; item < end; ++item) {
    A* sum = grad_item + item * s.item_width;
    for (int64_t o = negatives.start[item]; o < negatives.start[item + 1]; ++o) {
      const int64_t part = negatives.entries[o] / num_negatives;
      const int64_t k = negatives.entries[o] % num_negatives;
      add_scaled(sum, A(1), from.grad_negatives + part * part_size + k * row, s.item_width);
    }
    const int64_t* tokens = positives.entries.data() + positives.start[item];
    add_all_scaled<S, T>(
        sum, positives.start[item + 1] - positives.start[item],
        [&](int64_t i) SSEPT_INLINE_LAMBDA {
          return std::pair(from.of_positive[tokens[i]], in.hidden + tokens[i] * s.width);
        },
        s.item_width);
  }
}

template <class T, class A = Accumulator<T>>
void compute(const SharedLossArgs& args) {
  const auto in = args.logits.kernel_args<T>();
  const auto loss = args.kernel_args<A>();
  const auto& s = in.size;
  const int64_t num_real = check_batch(in), count = args.num_negatives;
  check_longest("cu_seqlens", in.cu_seqlens, s.num_sequences, args.max_seqlen);
  check_ids("positives", loss.positives, num_real, s.item_rows);
  check_ids("negatives", loss.negatives, args.num_sets * count, s.item_rows);
  zero_rows_from(args.grad_hidden, num_real);
  const auto parts = make_parts(in.cu_seqlens, s.num_sequences, args.num_sets, count);
  const int64_t part_size = Parts<T>::part_size(s, count);
  std::vector<A> losses(num_real), of_positive(num_real), grad_sum(num_real);
  const Buffer<A> grad_negatives(std::ssize(parts) * part_size + 1);
  Results<T, A> out{losses.data(), of_positive.data(), grad_sum.data(),
                    mutable_data<T>(args.grad_hidden), grad_negatives.get()};
  torch::stable::parallel_for(0, std::ssize(parts), 1, [&](int64_t begin, int64_t end) {
    Parts<T> computing(in, loss, count, out);
    for (int64_t i = begin; i < end; ++i) computing.compute(parts[i], i);
  });
  average(losses, loss.positives, mutable_data<A>(args.mean), mutable_data<A>(args.inverse_count));

  std::vector<int64_t> ids;
  ids.reserve(parts.size() * count);
  for (const Part& part : parts)
    ids.insert(ids.end(), loss.negatives + part.set * count,
               loss.negatives + (part.set + 1) * count);
  const Occurrences negatives(ids.data(), std::ssize(ids), s.item_rows, /*first=*/1);
  const Occurrences positives(loss.positives, num_real, s.item_rows, /*first=*/1);
  const int64_t mean_occurrences = (std::ssize(ids) + num_real) / (s.item_rows + 1);
  torch::stable::parallel_for(0, s.item_rows, grain((1 + mean_occurrences) * s.item_width),
                              [&](int64_t begin, int64_t end) {
                                with_simd([&]<class S>(S) SSEPT_INLINE_LAMBDA {
                                  add_items<S>(in, out, part_size, count, negatives, positives,
                                               mutable_data<A>(args.grad_item), begin, end);
                                });
                              });
  backward_users(in, grad_sum.data(), mutable_data<A>(args.grad_user));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> shared_loss(
    const Tensor& hidden, const Tensor& item_weight, const std::optional<Tensor>& user_weight,
    const Tensor& positives, const Tensor& negatives, const std::optional<Tensor>& users,
    const Tensor& cu_seqlens, int64_t max_seqlen, const std::string& loss, double beta,
    const std::optional<Tensor>& log_q, bool corrects_positive) {
  const SharedLossArgs args(hidden, item_weight, user_weight, positives, negatives, users,
                            cu_seqlens, max_seqlen, loss, beta, log_q, corrects_positive);
  dispatch_floating("hidden", args.logits.type, [&]<class T>() { compute<T>(args); });
  return {args.mean, args.grad_hidden, args.grad_item, args.grad_user, args.inverse_count};
}

}  // namespace
}  // namespace ssept::cpu

SSEPT_LIBRARY_IMPL(CPU, m) { m.impl("shared_loss", TORCH_BOX(&ssept::cpu::shared_loss)); }
