// The rows of embedding tables that a batch reads. Plain C++: no torch, no Python.
#pragma once
#include <cstdint>
#include <vector>

namespace ssept::sampler {

// The distinct ids of a batch and 0, ascending, and the number of each among them. A bit for every
// id makes this linear in the ids, with little memory: 1.9 MB for 10^7 ids.
class DistinctIds {
 public:
  // Starts anew, for ids from 0 to `largest`.
  void reset(int64_t largest);
  void add(const std::vector<int64_t>& ids);
  // Ends adding: writes the distinct ids.
  void list(std::vector<int64_t>& distinct);
  // Writes the number of each of these ids, which must have been added.
  void number(const std::vector<int64_t>& ids, std::vector<int64_t>& numbers) const;

 private:
  std::vector<uint64_t> bits_;
  std::vector<int32_t> before_;  // ids below those of each word
};

// What `ssept_ext.data.packed.RowNumbers` holds. Vectors keep their memory.
struct RowNumbers {
  std::vector<int64_t> item_ids, user_ids;
  std::vector<int64_t> users, items, positives, negatives;

  // Ids must be from 0 to `largest_item` and `largest_user`.
  void assign(const std::vector<int64_t>& users, const std::vector<int64_t>& items,
              const std::vector<int64_t>& positives, const std::vector<int64_t>& negatives,
              int64_t largest_item, int64_t largest_user);

 private:
  DistinctIds distinct_;
};

}  // namespace ssept::sampler
