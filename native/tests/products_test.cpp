// The packed products of every instruction set against the scalar ones, bit for bit.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/random_model.h"

namespace pomona::testing {
namespace {

constexpr float kUntouched = -12345.0f;

// Activations as they come, and as they should not: outliers, zeros, denormals, ties, the limits, no numbers.
std::vector<float> activations(int rows, int cols, Random& random) {
  std::vector<float> x = random.normals(static_cast<std::size_t>(rows) * cols);
  for (std::size_t block = 0; block < x.size() / kBlock; ++block) {
    float* p = x.data() + block * kBlock;
    float& one = p[random.integer(0, kBlock - 1)];
    switch (random.integer(0, 9)) {
      case 0:
        one = 1000.0f;
        break;
      case 1:
        std::fill_n(p, kBlock, 0.0f);
        break;
      case 2:
        for (int i = 0; i < kBlock; ++i) p[i] *= 1e-40f;
        break;
      case 3: // every quotient ends in .5
        for (int i = 0; i < kBlock; ++i) p[i] = (random.integer(-16000, 16000) + 0.5f) / 16256.0f;
        p[0] = 1.0f;
        break;
      case 4:
        for (int i = 0; i < kBlock; ++i) p[i] = random.chance(0.5) ? 3.0f : -3.0f;
        break;
      case 5:
        one = random.chance(0.5) ? std::numeric_limits<float>::infinity()
                                 : std::numeric_limits<float>::quiet_NaN();
        break;
      case 6:
        one = random.chance(0.5) ? 2e30f : 9e29f;
        break;
      default:
        break;
    }
  }
  return x;
}

// Mostly few; the large ones take another way in some instruction sets.
int rows_of_a_batch(Random& random) {
  return random.chance(0.2) ? random.integer(15, 70) : random.integer(1, 14);
}

struct Quantized {
  Aligned<std::uint8_t> bytes;
  Aligned<float> scales;
  Aligned<std::int32_t> offsets;
  Aligned<std::uint8_t> fine;
  QuantRows rows;

  Quantized(const Kernels& kernels, const std::vector<float>& x, int m, int cols)
      : bytes(static_cast<std::size_t>(m) * 2 * cols),
        scales(static_cast<std::size_t>(m) * (cols / kBlock)),
        offsets(static_cast<std::size_t>(m) * (cols / kBlock)),
        fine(static_cast<std::size_t>(m) * (cols / kBlock), 7),
        rows{m, cols, bytes.data(), scales.data(), offsets.data(), fine.data()} {
    for (int i = 0; i < m; ++i) kernels.quantize(x.data() + static_cast<std::size_t>(i) * cols, rows, i);
  }
};

std::vector<float> product(const Kernels& kernels, const Matrix& w, int g0, int g1, const Quantized& x) {
  std::vector<float> y(static_cast<std::size_t>(x.rows.rows) * w.rows, kUntouched);
  Aligned<std::uint8_t> scratch(matmul_scratch(w.cols));
  const auto multiply = w.format == Format::palette ? kernels.matmul_palette : kernels.matmul_int8;
  multiply(w, g0, g1, x.rows, y.data(), w.rows, scratch.data());
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Every instruction set, for `m` rows of activations and the groups [g0, g1).
void compare(const Tensors& tensors, int rows, int cols, int m, int g0, int g1, Random& random) {
  const Matrix w = read_matrix(tensors.map(), "w", rows, cols);
  const std::vector<float> x = activations(m, cols, random);
  const Kernels& scalar = scalar_kernels();
  const Quantized expected_x(scalar, x, m, cols);
  const std::vector<float> expected = product(scalar, w, g0, g1, expected_x);
  for (int i = 0; i < m; ++i)
    for (int r = 0; r < rows; ++r)
      if (r < g0 * kGroupRows || r >= g1 * kGroupRows)
        REQUIRE(expected[static_cast<std::size_t>(i) * rows + r] == kUntouched);
  for (const std::string& isa : instruction_sets()) {
    CAPTURE(isa);
    CAPTURE(rows);
    CAPTURE(cols);
    CAPTURE(m);
    const Kernels& kernels = select_kernels(isa.c_str());
    const Quantized quantized(kernels, x, m, cols);
    for (std::size_t i = 0; i < expected_x.scales.size(); ++i) {
      REQUIRE(quantized.scales[i] == expected_x.scales[i]);
      REQUIRE(quantized.offsets[i] == expected_x.offsets[i]);
      REQUIRE(quantized.fine[i] == expected_x.fine[i]);
    }
    REQUIRE(same_bits(product(kernels, w, g0, g1, quantized), expected));
  }
}

} // namespace

TEST_CASE("a palette's product has the scalar bits on every instruction set") {
  Random random(1);
  for (int round = 0; round < 120; ++round) {
    const int groups = random.integer(1, 6), blocks = random.integer(1, 6), cols = blocks * kBlock;
    int tables = random.integer(1, blocks);
    while (blocks % tables != 0) --tables;
    Tensors tensors;
    add_matrix(tensors, "w", Format::palette, groups * kGroupRows, cols, 2 + round % 3, cols / tables,
               random);
    const int g0 = random.integer(0, groups - 1);
    compare(tensors, groups * kGroupRows, cols, rows_of_a_batch(random), g0, random.integer(g0 + 1, groups),
            random);
  }
}

TEST_CASE("an int8 product has the scalar bits on every instruction set") {
  Random random(2);
  for (int round = 0; round < 60; ++round) {
    const int groups = random.integer(1, 6), cols = random.integer(1, 6) * kBlock;
    Tensors tensors;
    add_matrix(tensors, "w", Format::int8, groups * kGroupRows, cols, 0, 0, random);
    const int g0 = random.integer(0, groups - 1);
    compare(tensors, groups * kGroupRows, cols, rows_of_a_batch(random), g0, random.integer(g0 + 1, groups),
            random);
  }
}

TEST_CASE("the largest whole numbers do not overflow") {
  Random random(3);
  for (const int bits : {8, 4, 3, 2}) {
    CAPTURE(bits);
    Tensors tensors;
    add_matrix(tensors, "w", bits == 8 ? Format::int8 : Format::palette, 16, 256, bits, 64, random);
    const Matrix w = read_matrix(tensors.map(), "w", 16, 256);
    // Weights of -128, the extreme of both formats; activations that all round to +16256.
    auto* tables = const_cast<std::int8_t*>(w.tables);
    for (int i = 0; tables != nullptr && i < 4 << bits; ++i) tables[i] = -128;
    if (bits == 8) std::memset(const_cast<std::uint8_t*>(w.data), 0, 16 * 256);
    const std::vector<float> x(9 * 256, 2.0f);
    const std::vector<float> expected =
        product(scalar_kernels(), w, 0, 1, Quantized(scalar_kernels(), x, 9, 256));
    for (const std::string& isa : instruction_sets()) {
      CAPTURE(isa);
      const Kernels& kernels = select_kernels(isa.c_str());
      REQUIRE(same_bits(product(kernels, w, 0, 1, Quantized(kernels, x, 9, 256)), expected));
    }
  }
}

TEST_CASE("a row of a batch has the bits that it has alone") {
  Random random(4);
  const int cols = 192, rows = 96;
  for (const int bits : {8, 4, 3, 2}) {
    CAPTURE(bits);
    Tensors tensors;
    add_matrix(tensors, "w", bits == 8 ? Format::int8 : Format::palette, rows, cols, bits, 64, random);
    const Matrix w = read_matrix(tensors.map(), "w", rows, cols);
    for (const int m : {2, 3, 4, 5, 7, 8, 9, 13, 17, 35, 40}) {
      const std::vector<float> x = activations(m, cols, random);
      for (const std::string& isa : instruction_sets()) {
        CAPTURE(isa);
        CAPTURE(m);
        const Kernels& kernels = select_kernels(isa.c_str());
        const std::vector<float> together =
            product(kernels, w, 0, w.groups(), Quantized(kernels, x, m, cols));
        for (int i = 0; i < m; ++i) {
          const std::vector<float> one(x.begin() + i * cols, x.begin() + (i + 1) * cols);
          const std::vector<float> alone =
              product(kernels, w, 0, w.groups(), Quantized(kernels, one, 1, cols));
          REQUIRE(std::memcmp(alone.data(), together.data() + i * rows, rows * sizeof(float)) == 0);
        }
      }
    }
  }
}

} // namespace pomona::testing
