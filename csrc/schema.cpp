// The signature of every op, and nothing else. `ssept_ext.ops` documents them.
#include <string>

#include "common/library.h"

SSEPT_LIBRARY(m) {
  m.def(
      "user_item_embedding(Tensor item_weight, Tensor? user_weight, Tensor position_weight, "
      "Tensor items, Tensor? users, Tensor positions, Tensor cu_seqlens, float dropout_p=0.0, "
      "Tensor? seed=None, int site=0) -> Tensor");
  // Of the tables only the shapes are used. As in every backward, gradients of tables come in
  // float32 or wider; without users, theirs has no rows. item_order, here and below: a stable
  // argsort of items.flatten(); with it the CUDA kernel sums the item table's gradient in a fixed
  // order. more_item, more_user: what is added to the gradients of these tables.
  m.def(
      "user_item_embedding_backward(Tensor grad, Tensor item_weight, Tensor? user_weight, "
      "Tensor position_weight, Tensor items, Tensor? users, Tensor positions, Tensor cu_seqlens, "
      "float dropout_p, Tensor? seed, int site, Tensor? item_order, Tensor? more_item=None, "
      "Tensor? more_user=None) -> (Tensor grad_item, Tensor grad_user, Tensor grad_position)");
  // allow_tf32: a CUDA kernel may round float32 to TF32 before it multiplies.
  m.def(
      "causal_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, float dropout_p=0.0, "
      "Tensor? seed=None, int site=0, bool allow_tf32=False, Tensor? position_bias=None, "
      "Tensor? time_bias=None, Tensor? query_times=None, Tensor? key_times=None) "
      "-> (Tensor out, Tensor lse)");
  m.def(
      "causal_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, "
      "SymInt max_seqlen_k, float scale, float dropout_p, Tensor? seed, int site, "
      "bool allow_tf32, Tensor? position_bias=None, Tensor? time_bias=None, "
      "Tensor? query_times=None, Tensor? key_times=None) -> (Tensor grad_q, Tensor grad_k, "
      "Tensor grad_v, Tensor grad_position_bias, Tensor grad_time_bias)");
  // residual: whether x_q is added. The other outputs are for the backward, whose q, k and v may
  // come without their biases; `attended` has no rows without a residual, as it would be `out`.
  m.def(
      "multi_head_attention(Tensor x_q, Tensor x_k, Tensor q_weight, Tensor q_bias, "
      "Tensor k_weight, Tensor k_bias, Tensor v_weight, Tensor v_bias, Tensor cu_seqlens_q, "
      "Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, int num_heads, float scale, "
      "float dropout_p=0.0, Tensor? seed=None, int site=0, bool residual=True, "
      "bool allow_tf32=False, Tensor? position_bias=None, Tensor? time_bias=None, "
      "Tensor? query_times=None, Tensor? key_times=None) -> (Tensor out, Tensor attended, "
      "Tensor lse, Tensor q, Tensor k, Tensor v)");
  // Of weights and biases: those of queries, keys and values, one after another.
  m.def(
      "multi_head_attention_backward(Tensor grad_out, Tensor x_q, Tensor x_k, Tensor q_weight, "
      "Tensor q_bias, Tensor k_weight, Tensor k_bias, Tensor v_weight, Tensor v_bias, "
      "Tensor attended, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, "
      "Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, int num_heads, float scale, "
      "float dropout_p, Tensor? seed, int site, bool residual, bool allow_tf32, "
      "Tensor? position_bias=None, Tensor? time_bias=None, Tensor? query_times=None, "
      "Tensor? key_times=None) -> (Tensor grad_x_q, Tensor grad_x_k, Tensor grad_weight, "
      "Tensor grad_bias, Tensor grad_position_bias, Tensor grad_time_bias)");
  m.def(
      "sampled_logits(Tensor hidden, Tensor item_weight, Tensor? user_weight, Tensor items, "
      "Tensor? users, Tensor cu_seqlens) -> Tensor");
  // Of sampled_loss, grad_logits is the gradient of the sum of the tokens' losses, and their mean
  // is this sum times inverse_count.
  m.def(
      "sampled_loss(Tensor hidden, Tensor item_weight, Tensor? user_weight, Tensor positives, "
      "Tensor negatives, Tensor? users, Tensor cu_seqlens, str loss, float beta=1.0, "
      "Tensor? log_q=None, bool corrects_positive=True) "
      "-> (Tensor loss, Tensor grad_logits, Tensor inverse_count, Tensor items)");
  // Of shared_loss, gradients are those of the sum of the tokens' losses, and are to be multiplied
  // by inverse_count.
  m.def(
      "shared_loss(Tensor hidden, Tensor item_weight, Tensor? user_weight, Tensor positives, "
      "Tensor negatives, Tensor? users, Tensor cu_seqlens, SymInt max_seqlen, str loss, "
      "float beta=1.0, Tensor? log_q=None, bool corrects_positive=True) -> (Tensor loss, "
      "Tensor grad_hidden, Tensor grad_item, Tensor grad_user, Tensor inverse_count)");
  for (const std::string op : {"sampled_logits", "sampled_loss"})
    m.def((op + "_backward(Tensor grad_logits, Tensor hidden, Tensor item_weight, "
                "Tensor? user_weight, Tensor items, Tensor? users, Tensor cu_seqlens, "
                "Tensor? item_order, Tensor? grad_loss=None, Tensor? inverse_count=None) "
                "-> (Tensor grad_hidden, Tensor grad_item, Tensor grad_user)")
              .c_str());
  m.def(
      "position_layer_norm(Tensor x, Tensor gamma, Tensor beta, Tensor positions, "
      "Tensor cu_seqlens, float eps=1e-08) -> Tensor");
  m.def(
      "position_layer_norm_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, "
      "Tensor positions, Tensor cu_seqlens, float eps) "
      "-> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta)");
  // residual: x if not given. hidden: what the first dropout gives, for the backward. normal: the
  // layer norm of `out`; no rows without gamma and beta.
  m.def(
      "feed_forward(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, "
      "float dropout_p=0.0, Tensor? seed=None, int site=0, Tensor? residual=None, "
      "Tensor? gamma=None, Tensor? beta=None, float eps=1e-08) "
      "-> (Tensor out, Tensor hidden, Tensor normal)");
  // grad: that of `out`, which may be missing beside grad_normal. `out`, grad_normal and gamma come
  // together. Without them, grad_residual has no rows, as it would be grad, nor where x is the
  // residual.
  m.def(
      "feed_forward_backward(Tensor? grad, Tensor x, Tensor hidden, Tensor weight1, "
      "Tensor weight2, float dropout_p, Tensor? seed, int site, bool x_is_residual, "
      "Tensor? out=None, Tensor? grad_normal=None, Tensor? gamma=None, float eps=1e-08) "
      "-> (Tensor grad_x, Tensor grad_weight1, Tensor grad_bias1, Tensor grad_weight2, "
      "Tensor grad_bias2, Tensor grad_residual, Tensor grad_gamma, Tensor grad_beta)");
  m.def(
      "gated_residual(Tensor x, Tensor y, Tensor? gate=None, float dropout_p=0.0, "
      "Tensor? seed=None, int site=0) -> Tensor");
  // y and grad_gate's rows only with a gate. The gradient of x is grad.
  m.def(
      "gated_residual_backward(Tensor grad, Tensor? y, Tensor? gate, float dropout_p, "
      "Tensor? seed, int site) -> (Tensor grad_y, Tensor grad_gate)");
  m.def("swiglu(Tensor u, float dropout_p=0.0, Tensor? seed=None, int site=0) -> Tensor");
  m.def(
      "swiglu_backward(Tensor grad, Tensor u, float dropout_p, Tensor? seed, int site) -> Tensor");
  // Of the tables, the rows `ids` only. learning_rate and step are tensors, so that a captured CUDA
  // graph reads them anew.
  m.def(
      "lazy_adam(Tensor(a!) table, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor ids, "
      "Tensor grad, Tensor learning_rate, Tensor step, float beta1, float beta2, float eps, "
      "float weight_decay) -> ()");
  m.def(
      "rowwise_adagrad(Tensor(a!) table, Tensor(b!) sum_of_squares, Tensor ids, Tensor grad, "
      "Tensor learning_rate, float eps, float weight_decay) -> ()");
  // Of (B, W) queries and a table (R, W) or, with items side by side, (groups, W, 64).
  m.def(
      "top_k(Tensor queries, Tensor table, SymInt k, SymInt num_items, Tensor? seen_items=None, "
      "Tensor? seen_offsets=None, Tensor? candidates=None, Tensor? scale=None) "
      "-> (Tensor items, Tensor scores)");
  m.def(
      "item_ranks(Tensor queries, Tensor table, Tensor targets, SymInt num_items, "
      "Tensor? target_scores=None, Tensor? seen_items=None, Tensor? seen_offsets=None, "
      "Tensor? scale=None) -> (Tensor ranks, Tensor scores)");
  // Throws the IndexError of an id that a CUDA kernel met outside its table.
  m.def("raise_pending_errors() -> ()");
}
