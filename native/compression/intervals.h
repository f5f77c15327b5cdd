// Sorted values, in bins, cut into as many intervals as there are centres so that the weighted squares of the
// distances to the intervals' means are least: solved exactly, by dynamic programming.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "compression/sorted_values.h"
#include "kernels/kernels.h"

namespace pomona {

inline constexpr int kMaxIntervals = 16;

// best[j] = min over i of previous[i] + cost(i, j), an interval more than `previous`. The minimising i grows
// with j, so that the middle j of a range halves the choices of all others: O(bins log bins) per interval.
class IntervalSolver {
 public:
  explicit IntervalSolver(const Kernels& kernels) : kernels_(kernels) {}

  // edges: where bins begin, and the end of the last one. Gives the edges (by number) at which the intervals
  // begin, and behind them the last.
  std::array<int, kMaxIntervals + 1> solve(std::span<const Sums> sums, std::span<const std::size_t> edges,
                                           int intervals);

 private:
  struct Middle {
    int j, left, right; // the middle of a range, and what was solved before on both sides of the range
  };
  void plan(int bins);
  int solve_one(const Middle& middle, const std::vector<int>& choice);

  const Kernels& kernels_;
  std::vector<Middle> plan_; // ranges before their halves
  int planned_ = -1;
  std::vector<double> weight_, value_, square_; // the sums at the edges
  std::vector<double> previous_, best_;
  std::array<std::vector<int>, kMaxIntervals> choice_;
};

} // namespace pomona
