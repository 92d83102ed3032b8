// How a kernel reports an id outside its table without stopping the host or the context: the id
// counts as padding, and the first one is noted in host memory that the device can write, to be
// read when the host next waits anyway.
#pragma once
#include <cstdint>

namespace ssept::cuda {

enum class IdArgument {
  kItems,
  kUsers,
  kPositions,
  kIds,
  kPositives,
  kNegatives,
  kSeenItems,
  kCandidates,
  kTargets,
  kOrder
};

struct BadIdNote {
  unsigned int claimed;  // by the first thread that has something to note
  unsigned int ready;    // 1 when that thread has filled in the rest; all the host looks at
  IdArgument argument;
  int64_t id;
  int64_t table_rows;  // of kOrder, ids that do not ascend: the id before
};

// The note of a device, the same for the life of the process.
BadIdNote* bad_id_note(int device_index);

}  // namespace ssept::cuda
