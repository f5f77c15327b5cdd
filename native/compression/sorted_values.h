// The weighted values of one table in ascending order, with the sums of all that lies before each: what every
// number of centres and every round of k-means asks for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pomona {

// Of everything before a place in the order. double: a difference of two sums is a cluster's.
struct Sums {
  double weight = 0.0, value = 0.0, square = 0.0; // of w, w * v, w * v^2
};

// Weighted mean of what lies between two places; `otherwise` where nothing has weight.
inline double mean_between(const Sums& a, const Sums& b, double otherwise) {
  const double mass = b.weight - a.weight;
  return mass > 0.0 ? (b.value - a.value) / mass : otherwise;
}

class SortedValues {
 public:
  void clear() { pairs_.clear(); }
  // Values, which are finite, with their weights, which are not negative, in the order that `order` says.
  void add(const float* values, const float* weights, std::span<const std::int32_t> order);
  bool empty() const { return pairs_.empty(); }
  std::size_t size() const { return pairs_.size(); }

  // By value, equal values by weight; then adds up in this order. Fastest where the equal values of a run
  // were added by ascending weight.
  void sort();

  // After sort(): [size], and [size + 1] sums.
  const std::vector<float>& values() const { return values_; }
  const std::vector<Sums>& sums() const { return sums_; }

  // The first place whose value is not below `bound`; near `guess` it is found in a few steps.
  std::size_t first_not_below(double bound, std::size_t guess) const;

 private:
  template <int kDigitBits>
  void radix_sort();
  void order_equals();

  std::vector<std::uint64_t> pairs_, other_; // value and weight, in their order as whole numbers
  std::vector<float> values_;
  std::vector<Sums> sums_;
};

} // namespace pomona
