// Keys and values, bf16 or int8, in pages of 16 tokens; a page holds all layers and heads of its tokens in
// one piece.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "engine/arena.h"
#include "kernels/kernels.h"

namespace pomona {

struct KvCacheFull : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class KvCache {
 public:
  KvCache(Format format, int layers, int kv_heads, int head_dim, int tokens);

  int allocate(); // page index; KvCacheFull when there is none
  void release(int page);
  void copy(int from, int to);
  int free_pages() const { return static_cast<int>(free_.size()); }
  int pages() const { return pages_; }
  Format format() const { return format_; }
  std::size_t page_bytes() const { return page_bytes_; }

  // keys and values of one layer and head (see AttendArgs)
  std::uint8_t* block(int page, int layer, int head) const {
    return data_.data() + page * page_bytes_ +
           (static_cast<std::size_t>(layer) * kv_heads_ + head) * block_bytes_;
  }

 private:
  Format format_;
  int kv_heads_;
  int pages_;
  std::size_t block_bytes_;
  std::size_t page_bytes_;
  HugeArray<std::uint8_t> data_; // touched only as pages come into use
  std::vector<int> free_;
};

} // namespace pomona
