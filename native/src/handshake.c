/* handshake.c - versions and struct sizes, which callers that were compiled apart from the library compare. */
#include "logquant.h"

#ifndef LQ_VERSION_STRING
#error "LQ_VERSION_STRING is set by the build"
#endif

const char *lq_version(void) { return LQ_VERSION_STRING; }

uint32_t lq_abi_version(void) { return LQ_ABI_VERSION; }

size_t lq_sizeof_model_options(void) { return sizeof(lq_model_options); }
size_t lq_sizeof_model_info(void) { return sizeof(lq_model_info); }
size_t lq_sizeof_session_options(void) { return sizeof(lq_session_options); }
size_t lq_sizeof_session_info(void) { return sizeof(lq_session_info); }
size_t lq_sizeof_sampler_options(void) { return sizeof(lq_sampler_options); }
