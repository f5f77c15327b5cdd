// Memory in 2 MB pages where the system grants them: worth 1.5x and more of read bandwidth for streamed
// weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pomona {

// An anonymous mapping, zero until written, given back on destruction.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  explicit HugeBuffer(std::size_t bytes); // std::bad_alloc when the address space is refused
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

// A typed view on a HugeBuffer: working memory of the engine, 64-byte aligned.
template <class T>
class HugeArray {
 public:
  HugeArray() = default;
  explicit HugeArray(std::size_t count) : buffer_(count * sizeof(T)), count_(count) {}
  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  std::size_t size() const { return count_; }

 private:
  HugeBuffer buffer_;
  std::size_t count_ = 0;
};

} // namespace pomona
