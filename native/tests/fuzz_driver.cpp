// Runs a fuzz target without libFuzzer: inputs are made from consecutive seeds, or read from files.
//
//   fuzz_step --seconds 60 [--seed 1]     from seed 1 on, for a minute
//   fuzz_step --runs 1000 [--seed 1]
//   fuzz_step FILE ...                    what libFuzzer found
//
// A run that crashes, aborts or takes more than a minute prints its seed.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <unistd.h>

#include "tests/random_model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr unsigned kTooLong = 60;               // seconds of one run
char message[64] = "in an input from a file\n"; // what to print when the run does not end well

void fail(int signal) {
  const char* text = signal == SIGALRM ? "the run takes too long: " : "the run failed: ";
  (void)!write(2, text, std::strlen(text));
  (void)!write(2, message, std::strlen(message));
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

// Bytes of different tempers: anything, small numbers, pieces that repeat.
std::vector<std::uint8_t> generate(std::uint64_t seed) {
  pomona::testing::Random random(seed);
  std::vector<std::uint8_t> bytes(random.integer(1, random.chance(0.2) ? 1500 : 300));
  const int temper = random.integer(0, 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::uint8_t>(random.next());
    if (temper == 1 && random.chance(0.7)) bytes[i] %= 8;
    if (temper == 2 && i >= 16 && random.chance(0.8)) bytes[i] = bytes[i - random.integer(1, 16)];
  }
  return bytes;
}

} // namespace

int main(int count, char** arguments) {
  double seconds = 0.0;
  std::uint64_t runs = 1000, seed = 1, done = 0;
  std::vector<std::string> files;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name.rfind("--", 0) != 0) {
      files.push_back(name);
      continue;
    }
    if (i + 1 == count || (name != "--seconds" && name != "--runs" && name != "--seed")) {
      std::fprintf(stderr, "usage: %s [--seconds N | --runs N] [--seed N] [FILE ...]\n", arguments[0]);
      return 2;
    }
    const std::string value = arguments[++i];
    if (name == "--seconds") seconds = std::stod(value);
    if (name == "--runs") runs = std::stoull(value);
    if (name == "--seed") seed = std::stoull(value);
  }
  for (const int signal : {SIGABRT, SIGALRM}) std::signal(signal, fail);
  for (const std::string& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(stream)), {});
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  }
  if (!files.empty()) return 0;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (; seconds > 0.0 ? elapsed() < seconds : done < runs; ++done) {
    const std::vector<std::uint8_t> bytes = generate(seed + done);
    std::snprintf(message, sizeof message, "--seed %llu --runs 1\n",
                  static_cast<unsigned long long>(seed + done));
    alarm(kTooLong);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  alarm(0);
  std::printf("%llu runs in %.1f s, from seed %llu\n", static_cast<unsigned long long>(done), elapsed(),
              static_cast<unsigned long long>(seed));
  return 0;
}
