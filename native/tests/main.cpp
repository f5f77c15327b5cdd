// The native tests. Options are doctest's: --list-test-cases, --test-case=PATTERN, --duration=true.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
