// A token mask that someone else computes while the step runs: sampling waits for it, nothing before does.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

namespace pomona {

class LateMask {
 public:
  explicit LateMask(std::size_t words) : words_(words) {}

  std::span<std::uint32_t> words() {
    return words_;
  } // for the one who computes it, between begin() and done()
  std::size_t size() const { return words_.size(); }

  void begin() {
    const std::lock_guard lock(mutex_);
    ready_ = false;
  }
  // Must follow every begin(), also when the computation fails: steps wait for it.
  void done() {
    {
      const std::lock_guard lock(mutex_);
      ready_ = true;
    }
    changed_.notify_all();
  }
  std::span<const std::uint32_t> wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_; });
    return words_;
  }

 private:
  std::vector<std::uint32_t> words_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = true; // all zero: nothing may come
};

} // namespace pomona
