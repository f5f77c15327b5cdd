# Cross-compiling for ARM on Debian (g++-aarch64-linux-gnu); CMAKE_CROSSCOMPILING_EMULATOR runs the result.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
