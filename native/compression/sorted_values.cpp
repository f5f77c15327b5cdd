#include "compression/sorted_values.h"

#include <array>
#include <bit>
#include <iterator>
#include <utility>

namespace pomona {
namespace {

constexpr std::size_t kLarge = 3000; // from so many values on, fewer passes are worth longer counts

constexpr std::uint32_t kSign = 0x80000000u;

// The value's bits, made to count upwards, above those of the weight.
std::uint64_t pair_of(float value, float weight) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f); // -0 is 0
  const std::uint32_t key = bits ^ ((0u - (bits >> 31)) | kSign);
  return std::uint64_t{key} << 32 | std::bit_cast<std::uint32_t>(weight + 0.0f);
}

float value_of(std::uint64_t pair) {
  const auto key = static_cast<std::uint32_t>(pair >> 32);
  return std::bit_cast<float>(key ^ (((key >> 31) - 1u) | kSign));
}

float weight_of(std::uint64_t pair) { return std::bit_cast<float>(static_cast<std::uint32_t>(pair)); }

} // namespace

void SortedValues::add(const float* values, const float* weights, std::span<const std::int32_t> order) {
  const std::size_t first = pairs_.size();
  pairs_.resize(first + order.size());
  std::uint64_t* to = pairs_.data() + first;
  for (const std::int32_t k : order) *to++ = pair_of(values[k], weights[k]);
}

// By the digits of the value, the lowest first; what is equal in a digit keeps its order.
template <int kDigitBits>
void SortedValues::radix_sort() {
  constexpr int kPasses = (32 + kDigitBits - 1) / kDigitBits;
  constexpr std::uint32_t kDigits = 1u << kDigitBits;
  const auto digit = [](std::uint64_t pair, int pass) {
    return static_cast<std::uint32_t>(pair >> (32 + pass * kDigitBits)) & (kDigits - 1);
  };
  std::array<std::array<std::uint32_t, kDigits>, kPasses> places{};
  for (const std::uint64_t pair : pairs_)
    for (int pass = 0; pass < kPasses; ++pass) ++places[pass][digit(pair, pass)];
  other_.resize(pairs_.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    std::uint32_t* const place = places[pass].data();
    if (place[digit(pairs_[0], pass)] == pairs_.size()) continue; // all alike
    std::uint32_t before = 0;
    for (std::uint32_t d = 0; d < kDigits; ++d) before += std::exchange(place[d], before);
    std::uint64_t* const to = other_.data();
    for (const std::uint64_t pair : pairs_) to[place[digit(pair, pass)]++] = pair;
    pairs_.swap(other_);
  }
}

// Equal values lie together, and nearly always by weight.
void SortedValues::order_equals() {
  const std::size_t n = pairs_.size();
  for (std::size_t i = 1; i < n; ++i) {
    if (pairs_[i - 1] <= pairs_[i]) continue;
    const auto other = [value = pairs_[i] >> 32](std::uint64_t pair) { return pair >> 32 != value; };
    const auto begin = pairs_.begin(), here = begin + static_cast<std::ptrdiff_t>(i);
    const auto first = std::find_if(std::make_reverse_iterator(here), pairs_.rend(), other).base();
    const auto last = std::find_if(here, pairs_.end(), other);
    std::sort(first, last);
    i = static_cast<std::size_t>(last - begin);
  }
}

void SortedValues::sort() {
  const std::size_t n = pairs_.size();
  if (n >= kLarge)
    radix_sort<11>();
  else if (n > 0)
    radix_sort<8>();
  order_equals();
  values_.resize(n);
  sums_.resize(n + 1);
  Sums sums;
  sums_[0] = sums;
  for (std::size_t i = 0; i < n; ++i) {
    values_[i] = value_of(pairs_[i]);
    const double weight = weight_of(pairs_[i]), value = values_[i];
    sums.weight += weight;
    sums.value += weight * value;
    sums.square += weight * value * value;
    sums_[i + 1] = sums;
  }
}

std::size_t SortedValues::first_not_below(double bound, std::size_t guess) const {
  const float* const v = values_.data();
  std::size_t low = 0, high = guess; // before `low` all are below the bound, from `high` on none
  if (guess < size() && v[guess] < bound) {
    for (std::size_t step = 1; high < size() && v[high] < bound; step *= 2) {
      low = high + 1;
      high += step;
    }
    high = std::min(high, size());
  } else {
    for (std::size_t step = 1; high > 0; step *= 2) {
      const std::size_t at = high - std::min(step, high);
      if (v[at] < bound) {
        low = at + 1;
        break;
      }
      high = at;
    }
  }
  return static_cast<std::size_t>(
      std::lower_bound(v + low, v + high, bound, [](float x, double b) { return x < b; }) - v);
}

} // namespace pomona
