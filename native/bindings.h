// What the files of bindings share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace pomona {

template <class T>
using Array = nb::ndarray<nb::numpy, T, nb::c_contig>;
template <class T, int N>
using Input = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using AnyInput = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

template <class T>
Array<T> to_numpy(std::vector<T> values, std::vector<std::size_t> shape) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owner->data();
  nb::capsule capsule(owner.get(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  owner.release(); // the capsule owns it now
  return Array<T>(data, shape.size(), shape.data(), capsule);
}

void bind_compression(nb::module_& m);

} // namespace pomona
