#include "engine/kv_cache.h"

#include <algorithm>

namespace pomona {

KvCache::KvCache(Format format, int layers, int kv_heads, int head_dim, int tokens)
    : format_(format),
      kv_heads_(kv_heads),
      pages_((tokens + kPageTokens - 1) / kPageTokens),
      block_bytes_(page_block_bytes(format, head_dim)),
      page_bytes_(block_bytes_ * layers * kv_heads),
      data_(page_bytes_ * pages_) {
  for (int p = pages_ - 1; p >= 0; --p) free_.push_back(p);
}

int KvCache::allocate() {
  if (free_.empty())
    throw KvCacheFull("the key/value cache is full (" + std::to_string(pages_ * kPageTokens) + " tokens)");
  const int page = free_.back();
  free_.pop_back();
  return page;
}

void KvCache::copy(int from, int to) {
  std::copy_n(data_.data() + from * page_bytes_, page_bytes_, data_.data() + to * page_bytes_);
}

void KvCache::release(int page) { free_.push_back(page); }

} // namespace pomona
