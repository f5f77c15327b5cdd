#include "engine/arena.h"

#include <sys/mman.h>

#include <new>
#include <utility>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POMONA_RED_ZONE 4096
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define POMONA_RED_ZONE 4096
#endif
#if defined(POMONA_RED_ZONE)
#include <sanitizer/asan_interface.h>
#endif

namespace pomona {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// AddressSanitizer knows nothing of our mappings: in its builds a buffer lies between two poisoned zones.
#if defined(POMONA_RED_ZONE)
constexpr std::size_t kRedZone = POMONA_RED_ZONE;
void guard(std::uint8_t* mapping, std::size_t mapped, std::uint8_t* data, std::size_t size) {
  ASAN_POISON_MEMORY_REGION(mapping, static_cast<std::size_t>(data - mapping));
  ASAN_POISON_MEMORY_REGION(data + size, mapped - size - static_cast<std::size_t>(data - mapping));
}
void unguard(void* mapping, std::size_t mapped) { ASAN_UNPOISON_MEMORY_REGION(mapping, mapped); }
#else
constexpr std::size_t kRedZone = 0;
void guard(std::uint8_t*, std::size_t, std::uint8_t*, std::size_t) {}
void unguard(void*, std::size_t) {}
#endif

} // namespace

HugeBuffer::HugeBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const bool large = bytes >= kHugePage;
  mapped_ = (large ? (bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage : bytes) + 2 * kRedZone;
  mapping_ =
      mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::bad_alloc();
  }
  auto address = reinterpret_cast<std::uintptr_t>(mapping_) + kRedZone;
  if (large) {
    address = (address + kHugePage - 1) / kHugePage * kHugePage;
#ifdef MADV_HUGEPAGE
    madvise(reinterpret_cast<void*>(address), mapped_ - kHugePage - 2 * kRedZone,
            MADV_HUGEPAGE); // advice: a refusal only costs speed
#endif
  }
  data_ = reinterpret_cast<std::uint8_t*>(address);
  guard(static_cast<std::uint8_t*>(mapping_), mapped_, data_, size_);
}

HugeBuffer::~HugeBuffer() {
  if (mapping_ == nullptr) return;
  unguard(mapping_, mapped_);
  munmap(mapping_, mapped_);
}

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

} // namespace pomona
