// Where the time of a step goes: nanoseconds per matrix and in attention, for the analysis of a compressed
// model.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/weights.h"

namespace pomona {

// Off until start(). Every thread adds to a row of its own, so that no two of them write one line of memory.
class Profile {
 public:
  using Clock = std::chrono::steady_clock;

  bool running() const { return !names_.empty(); }
  void start(const Weights& weights, bool tied, int threads);
  void stop();

  // Nanoseconds since the last call, the mean over the threads: what waits for other threads is counted
  // nowhere. Keys: module names, and "attention". Empty when not running.
  std::map<std::string, double> take();

  // The time of its own life, which is thread t's work on one product; nothing while the profile is off.
  class Scope {
   public:
    Scope(Profile& profile, int t, const Matrix* matrix)
        : sum_(profile.running() ? profile.sum(t, matrix) : nullptr) {
      if (sum_ != nullptr) begin_ = Clock::now();
    }
    ~Scope() {
      if (sum_ != nullptr)
        *sum_ += std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin_).count();
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    std::int64_t* sum_;
    Clock::time_point begin_;
  };

  Scope product(int t, const Matrix& matrix) { return Scope(*this, t, &matrix); }
  Scope attention(int t) { return Scope(*this, t, nullptr); }

 private:
  std::int64_t* sum(int t, const Matrix* matrix) {
    return &sums_[t][matrix == nullptr ? 0 : places_.find(matrix)->second];
  }

  std::vector<std::string> names_; // the first is attention
  std::unordered_map<const Matrix*, std::size_t> places_;
  std::vector<std::vector<std::int64_t>> sums_; // [threads][names]
};

} // namespace pomona
