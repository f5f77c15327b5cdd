#include "compression/intervals.h"

#include <algorithm>

namespace pomona {

// Level by level, so that a range need not wait for the one before it.
void IntervalSolver::plan(int bins) {
  if (planned_ == bins) return;
  planned_ = bins;
  plan_.clear();
  std::vector<std::array<int, 2>> ranges{{0, bins}}, halves;
  while (!ranges.empty()) {
    halves.clear();
    for (const auto& [first, last] : ranges) {
      const int j = (first + last) / 2;
      plan_.push_back({j, first - 1, last + 1});
      if (first < j) halves.push_back({first, j - 1});
      if (j < last) halves.push_back({j + 1, last});
    }
    ranges.swap(halves);
  }
}

int IntervalSolver::solve_one(const Middle& middle, const std::vector<int>& choice) {
  const int j = middle.j, first = middle.left < 0 ? 0 : choice[middle.left],
            last = std::min(middle.right > planned_ ? planned_ : choice[middle.right], j);
  return kernels_.cheapest_cut(previous_.data(), weight_.data(), value_.data(), square_.data(), first, last,
                               j, &best_[j]);
}

std::array<int, kMaxIntervals + 1> IntervalSolver::solve(std::span<const Sums> sums,
                                                         std::span<const std::size_t> edges, int intervals) {
  const int n = static_cast<int>(edges.size()) - 1;
  plan(n);
  const std::size_t room = edges.size() + kCutLanes; // a kernel reads some beyond the end
  for (auto* array : {&weight_, &value_, &square_, &previous_, &best_}) array->assign(room, 0.0);
  for (int j = 0; j <= n; ++j) {
    weight_[j] = sums[edges[j]].weight;
    value_[j] = sums[edges[j]].value;
    square_[j] = sums[edges[j]].square;
  }
  for (int j = 0; j <= n; ++j) // a single interval: a cut at 0 that costs nothing
    kernels_.cheapest_cut(best_.data(), weight_.data(), value_.data(), square_.data(), 0, 0, j,
                          &previous_[j]);
  for (int interval = 1; interval < intervals; ++interval) {
    std::vector<int>& choice = choice_[interval];
    choice.assign(n + 1, 0);
    const bool last = interval == intervals - 1; // of which only the end is asked for
    for (const Middle& middle : plan_)
      if (!last || middle.right > n) choice[middle.j] = solve_one(middle, choice);
    previous_.swap(best_);
  }
  std::array<int, kMaxIntervals + 1> cuts{};
  cuts[intervals] = n;
  for (int interval = intervals - 1; interval >= 1; --interval)
    cuts[interval] = choice_[interval][cuts[interval + 1]];
  return cuts;
}

} // namespace pomona
