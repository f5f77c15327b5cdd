// Full pages of keys and values, kept for later sequences that begin with the same tokens under the same
// adapter.
//
// The pages form a tree: a node is one page, and its path from the root spells the tokens. A page that is
// full never changes again, so it can be shared at once, while the sequence that filled it goes on. Nodes are
// found by exact comparison of (adapter, parent, 16 tokens): no hash is trusted. Nodes that no sequence holds
// are evicted, least recently used and leaves first, when pages run out.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.h"

namespace pomona {

class PrefixCache {
 public:
  using PageTokens = std::array<std::int32_t, kPageTokens>;
  static constexpr int kRoot = -1;

  // The child of `parent` that holds these tokens, or kRoot. `adapter` is 0 for none, else its version's
  // number.
  int find(int parent, std::uint64_t adapter, const PageTokens& tokens) const;
  // The child of `parent` that begins with most of these tokens, and with how many; kRoot and 0: none does.
  struct Beginning {
    int node = kRoot;
    std::size_t tokens = 0;
  };
  Beginning closest(int parent, std::uint64_t adapter, std::span<const std::int32_t> tokens) const;
  // Adds a node that find() did not give, held once; `page` belongs to the cache from now on.
  int insert(int parent, std::uint64_t adapter, const PageTokens& tokens, int page);

  void hold(int node);
  void drop(int node);
  // Ends a node that only the caller holds and nothing stands on; its page is the caller's again. Else false.
  bool give_back(int node);
  bool is_own(int node) const { return nodes_[node].holders == 1; } // nobody holds it but the caller
  bool is_own_leaf(int node) const { return is_own(node) && nodes_[node].children == 0; }
  int page(int node) const { return nodes_[node].page; }

  int evictable() const { return idle_; } // pages that evict() can give back, one after the other
  int evict();                            // the page that became free; only when evictable() > 0

 private:
  struct Key {
    int parent;
    std::uint64_t adapter;
    PageTokens tokens;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const;
  };
  struct Node {
    Key key;
    int page = 0;
    int holders = 0;
    int children = 0;
    std::uint64_t used = 0;
    bool live = false;
  };

  void remove(int node);

  std::unordered_map<Key, int, KeyHash> index_;
  std::vector<Node> nodes_;
  std::vector<int> vacant_;
  std::uint64_t clock_ = 0;
  int idle_ = 0; // nodes without holders; a held node's ancestors are held too, so all of these can go
};

} // namespace pomona
