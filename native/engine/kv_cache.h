// Keys and values in pages of 16 tokens; a page holds all layers and heads of its tokens in one piece.
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
  KvCache(int layers, int kv_heads, int head_dim, int tokens);

  int allocate(); // page index; KvCacheFull when there is none
  void release(int page);
  void copy(int from, int to);
  int free_pages() const { return static_cast<int>(free_.size()); }
  int pages() const { return pages_; }
  std::size_t page_bytes() const { return page_elements_ * sizeof(std::uint16_t); }

  // keys [D/2][16][2], then values [8][D][2] of one layer and head (see kernels.h)
  std::uint16_t* block(int page, int layer, int head) const {
    return data_.data() + page * page_elements_ +
           (static_cast<std::size_t>(layer) * kv_heads_ + head) * block_elements_;
  }

 private:
  int kv_heads_;
  int pages_;
  std::size_t block_elements_;
  std::size_t page_elements_;
  HugeArray<std::uint16_t> data_; // touched only as pages come into use
  std::vector<int> free_;
};

} // namespace pomona
