#include "sampler/numbering.h"

#include <bit>
#include <iterator>

namespace ssept::sampler {
namespace {

constexpr int64_t kBits = 64;

uint64_t bit(int64_t id) { return uint64_t{1} << (id % kBits); }

}  // namespace

void DistinctIds::reset(int64_t largest) {
  bits_.assign(largest / kBits + 1, 0);
  bits_[0] = 1;
}

void DistinctIds::add(const std::vector<int64_t>& ids) {
  for (const int64_t id : ids) bits_[id / kBits] |= bit(id);
}

void DistinctIds::list(std::vector<int64_t>& distinct) {
  distinct.clear();
  before_.resize(bits_.size());
  for (int64_t word = 0; word < std::ssize(bits_); ++word) {
    before_[word] = static_cast<int32_t>(distinct.size());
    for (uint64_t left = bits_[word]; left != 0; left &= left - 1)
      distinct.push_back(word * kBits + std::countr_zero(left));
  }
}

void DistinctIds::number(const std::vector<int64_t>& ids, std::vector<int64_t>& numbers) const {
  numbers.resize(ids.size());
  for (int64_t i = 0; i < std::ssize(ids); ++i) {
    const int64_t word = ids[i] / kBits;
    numbers[i] = before_[word] + std::popcount(bits_[word] & (bit(ids[i]) - 1));
  }
}

void RowNumbers::assign(const std::vector<int64_t>& of_users, const std::vector<int64_t>& of_items,
                        const std::vector<int64_t>& of_positives,
                        const std::vector<int64_t>& of_negatives, int64_t largest_item,
                        int64_t largest_user) {
  distinct_.reset(largest_item);
  for (const auto* ids : {&of_items, &of_positives, &of_negatives}) distinct_.add(*ids);
  distinct_.list(item_ids);
  distinct_.number(of_items, items);
  distinct_.number(of_positives, positives);
  distinct_.number(of_negatives, negatives);
  distinct_.reset(largest_user);
  distinct_.add(of_users);
  distinct_.list(user_ids);
  distinct_.number(of_users, users);
}

}  // namespace ssept::sampler
