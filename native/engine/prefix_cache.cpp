#include "engine/prefix_cache.h"

#include <algorithm>
#include <stdexcept>

namespace pomona {

std::size_t PrefixCache::KeyHash::operator()(const Key& key) const {
  std::uint64_t h = key.adapter * 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(key.parent + 1);
  for (const std::int32_t token : key.tokens) {
    h ^= static_cast<std::uint32_t>(token);
    h *= 0xbf58476d1ce4e5b9ull;
    h ^= h >> 29;
  }
  return static_cast<std::size_t>(h);
}

int PrefixCache::find(int parent, std::uint64_t adapter, const PageTokens& tokens) const {
  const auto it = index_.find(Key{parent, adapter, tokens});
  return it == index_.end() ? kRoot : it->second;
}

PrefixCache::Beginning PrefixCache::closest(int parent, std::uint64_t adapter,
                                            std::span<const std::int32_t> tokens) const {
  Beginning best;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (!node.live || node.key.parent != parent || node.key.adapter != adapter) continue;
    const std::size_t same = std::ranges::mismatch(tokens, node.key.tokens).in1 - tokens.begin();
    if (same > best.tokens) best = {static_cast<int>(i), same};
  }
  return best;
}

int PrefixCache::insert(int parent, std::uint64_t adapter, const PageTokens& tokens, int page) {
  int node = static_cast<int>(nodes_.size());
  if (vacant_.empty()) {
    nodes_.emplace_back();
  } else {
    node = vacant_.back();
    vacant_.pop_back();
  }
  nodes_[node] = Node{Key{parent, adapter, tokens}, page, 1, 0, ++clock_, true};
  index_.emplace(nodes_[node].key, node);
  if (parent != kRoot) ++nodes_[parent].children;
  return node;
}

void PrefixCache::hold(int node) {
  if (nodes_[node].holders++ == 0) --idle_;
  nodes_[node].used = ++clock_;
}

void PrefixCache::drop(int node) {
  if (--nodes_[node].holders == 0) ++idle_;
  nodes_[node].used = ++clock_;
}

int PrefixCache::evict() {
  int oldest = kRoot;
  for (int i = 0; i < static_cast<int>(nodes_.size()); ++i) {
    const Node& node = nodes_[i];
    if (node.live && node.holders == 0 && node.children == 0 &&
        (oldest == kRoot || node.used < nodes_[oldest].used))
      oldest = i;
  }
  if (oldest == kRoot) throw std::logic_error("nothing to evict");
  --idle_;
  remove(oldest);
  return nodes_[oldest].page;
}

bool PrefixCache::give_back(int node) {
  if (!is_own_leaf(node)) return false;
  remove(node);
  return true;
}

void PrefixCache::remove(int node) {
  Node& n = nodes_[node];
  if (n.key.parent != kRoot) --nodes_[n.key.parent].children;
  index_.erase(n.key);
  n.live = false;
  vacant_.push_back(node);
}

} // namespace pomona
