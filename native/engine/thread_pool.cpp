#include "engine/thread_pool.h"

namespace pomona {
namespace {
constexpr int kIdleSpins = 20000; // about 250 us between steps, then the workers sleep
} // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  try {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (...) { // the system has no more threads: those that run must end before this object does
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::wait_for(const std::atomic<unsigned>& value, unsigned old) {
  spin_until([&] { return value.load(std::memory_order_acquire) != old; });
}

void ThreadPool::run(const std::function<void(int)>& task) {
  if (threads_ > 1) {
    running_.store(threads_ - 1, std::memory_order_relaxed);
    {
      const std::lock_guard lock(mutex_);
      task_ = &task;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  task(0);
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::work(int index) {
  unsigned seen = 0;
  while (true) {
    for (int spin = 0; spin < kIdleSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin)
      cpu_relax();
    if (epoch_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    (*task_)(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

} // namespace pomona
