// Threads that stay, and the barrier between the phases of a forward pass.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace pomona {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until done() holds. Spins first, then yields: with a competing process a pure spin takes the very
// core that the others need.
template <class Done>
void spin_until(Done&& done) {
  constexpr int kSpins = 1000; // about 12 us inside a step
  for (int spin = 0; !done(); ++spin) {
    if (spin < kSpins)
      cpu_relax();
    else
      std::this_thread::yield();
  }
}

// A barrier in two halves: between arrive() and wait() a thread does what needs nothing of the others, and so
// rarely waits. The threads pass one after another any number of these meetings, all of them each.
class Meeting {
 public:
  void reset() { arrived_.store(0, std::memory_order_relaxed); }
  void arrive() { arrived_.fetch_add(1, std::memory_order_acq_rel); }
  // Until the threads have arrived `arrivals` times since reset(), all together.
  void wait(int arrivals) const {
    spin_until([&] { return arrived_.load(std::memory_order_acquire) >= arrivals; });
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Runs task(0) .. task(size - 1), task(0) on the calling thread. The task must not throw.
  void run(const std::function<void(int)>& task);

  // Inside a task: waits for all threads; the last to come runs `last` before any goes on.
  template <class Last>
  void barrier(Last&& last) {
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      std::forward<Last>(last)();
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      wait_for(phase_, phase);
    }
  }
  void barrier() {
    barrier([] {});
  }

 private:
  static void wait_for(const std::atomic<unsigned>& value, unsigned old);
  void work(int index);
  void stop(); // ends the workers

  int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  alignas(64) std::atomic<unsigned> epoch_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* task_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// Share of `count` units, in steps of one, that thread `index` of `threads` takes.
inline std::pair<int, int> share(int count, int index, int threads) {
  return {static_cast<int>(static_cast<long long>(count) * index / threads),
          static_cast<int>(static_cast<long long>(count) * (index + 1) / threads)};
}

} // namespace pomona
