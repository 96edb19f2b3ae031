# liblogquant_cuda_ptx runs the backend as nvcc compiles it, host code and PTX, on a CPU. The PTX of LQ_CUDA_PTX_ARCH is
# translated into C++ (tools/codegen/ptx_to_cpp.py), and the emulation replaces CUDA's runtime library.
enable_language(CXX)
find_package(Python3 3.10 REQUIRED COMPONENTS Interpreter)
set(LQ_CUDA_PTX_ARCH 80 CACHE STRING "Compute capability whose PTX runs")
set(translator ${LQ_NATIVE}/../tools/codegen/ptx_to_cpp.py)
file(GLOB headers CONFIGURE_DEPENDS *.cuh ${LQ_NATIVE}/src/backends/*.h)
set(tables "")
separate_arguments(user_flags NATIVE_COMMAND "${CMAKE_CUDA_FLAGS}")
if(CMAKE_CUDA_HOST_COMPILER)
  list(APPEND user_flags -ccbin ${CMAKE_CUDA_HOST_COMPILER})
endif()
foreach(name IN LISTS LQ_CUDA_SOURCES)
  set(ptx ${CMAKE_CURRENT_BINARY_DIR}/ptx/${name}.ptx)
  set(flags "")
  if(name IN_LIST LQ_CUDA_UNCONTRACTED)
    set(flags -fmad=false)
  endif()
  add_custom_command(OUTPUT ${ptx} DEPENDS ${name}.cu ${headers} VERBATIM
    COMMAND ${CMAKE_CUDA_COMPILER} ${user_flags} -ptx -arch=compute_${LQ_CUDA_PTX_ARCH} -std=c++17 ${flags} -DLQ_BUILD "-DLQ_CUDA_ARCHS=\"\""
            -I${LQ_NATIVE}/src -I${LQ_NATIVE}/include ${CMAKE_CURRENT_SOURCE_DIR}/${name}.cu -o ${ptx})
  add_custom_command(OUTPUT ${ptx}.cpp DEPENDS ${ptx} ${translator} VERBATIM
    COMMAND ${Python3_EXECUTABLE} ${translator} ${ptx} ${ptx}.cpp lq_ptx_${name})
  list(APPEND translated ${ptx}.cpp)
  string(APPEND declarations "extern const lq_ptx_kernel lq_ptx_${name}[];\n")
  string(APPEND tables "lq_ptx_${name}, ")
endforeach()
file(CONFIGURE OUTPUT ptx/tables.cpp CONTENT "#include \"ptx.h\"
${declarations}extern const lq_ptx_kernel *const lq_ptx_tables[];
const lq_ptx_kernel *const lq_ptx_tables[] = {${tables}nullptr};
")
# All files use CUDA's headers, except blas.cpp, which uses the emulation's as it does in the emulated build.
add_library(logquant_cuda_ptx SHARED ${sources} ${translated} ${CMAKE_CURRENT_BINARY_DIR}/ptx/tables.cpp ${LQ_CUDA_SHARED}
  ${LQ_EMULATION}/emulation.cpp ${LQ_EMULATION}/ptx/runtime.cpp ${LQ_EMULATION}/blas.cpp)
set_source_files_properties(${LQ_EMULATION}/blas.cpp PROPERTIES INCLUDE_DIRECTORIES ${LQ_EMULATION})
set_source_files_properties(${translated} PROPERTIES COMPILE_OPTIONS "-O1;-Wno-maybe-uninitialized")
set_target_properties(logquant_cuda_ptx PROPERTIES
  CUDA_ARCHITECTURES ${LQ_CUDA_PTX_ARCH}-virtual CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY None CUDA_VISIBILITY_PRESET hidden
  CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_VISIBILITY_PRESET hidden C_VISIBILITY_PRESET hidden
  POSITION_INDEPENDENT_CODE ON)
target_compile_options(logquant_cuda_ptx PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off>)
if(LQ_WERROR)
  target_compile_options(logquant_cuda_ptx PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
target_compile_definitions(logquant_cuda_ptx PRIVATE LQ_BUILD LQ_CUDA_ARCHS="ptx of ${LQ_CUDA_PTX_ARCH}"
  LQ_CUDA_PTX_ARCH=${LQ_CUDA_PTX_ARCH})
target_include_directories(logquant_cuda_ptx PRIVATE ${LQ_NATIVE}/src ${LQ_NATIVE}/include ${LQ_EMULATION}/ptx
  ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
