# llama.cpp's project() call includes this file when the farm compiles it.

# llama-cpp-python forces LLAMA_BUILD_COMMON on in the cache, yet of what it installs only the
# multimodal part links to it. A normal variable shadows the cache, and llama.cpp's option()
# leaves a normal variable alone (policy CMP0077), so three quarters of the compile are not done.
if(DEFINED LLAVA_BUILD AND NOT LLAVA_BUILD)
    set(LLAMA_BUILD_COMMON OFF)
endif()

# GCC before 11.5, 12.4 and 13.3 drops the stores that fill AMX's tile configuration (GCC bug
# 114098), and quantised models then die with SIGSEGV at their first product. Without AMX
# llama.cpp takes its AVX-512 kernels.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    set(gcc ${CMAKE_CXX_COMPILER_VERSION})
    if((gcc VERSION_GREATER_EQUAL 11 AND gcc VERSION_LESS 11.5)
       OR (gcc VERSION_GREATER_EQUAL 12 AND gcc VERSION_LESS 12.4)
       OR (gcc VERSION_GREATER_EQUAL 13 AND gcc VERSION_LESS 13.3))
        add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
    endif()
endif()
