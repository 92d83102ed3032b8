// The signature of every op, and nothing else. `ssept_ext.ops` documents them.
#include "common/library.h"

SSEPT_LIBRARY(m) {
  m.def(
      "sampled_logits(Tensor hidden, Tensor item_weight, Tensor? user_weight, Tensor items, "
      "Tensor? users, Tensor cu_seqlens) -> Tensor");
  // item_order: a stable argsort of items.flatten(); with it the CUDA kernel sums the item table's
  // gradient in a fixed order. Gradients of tables come in float32 or wider, the users' as one row
  // for each sequence.
  m.def(
      "sampled_logits_backward(Tensor grad_logits, Tensor hidden, Tensor item_weight, "
      "Tensor? user_weight, Tensor items, Tensor? users, Tensor cu_seqlens, Tensor? item_order) "
      "-> (Tensor grad_hidden, Tensor grad_item, Tensor grad_user)");
  // Throws the IndexError of an id that a CUDA kernel met outside its table.
  m.def("raise_pending_errors() -> ()");
}
