/* blocks.c - the tables of block kinds. */
#include "model/block.h"

#define LQ_MIXER(NAME, suffix) extern const lq_block lq_block_##suffix;
#include "model/mixers.def"
#undef LQ_MIXER

#define LQ_FFN(NAME, suffix) extern const lq_block lq_block_##suffix;
#include "model/ffns.def"
#undef LQ_FFN

const lq_block *const lq_mixers[] = {
#define LQ_MIXER(NAME, suffix) &lq_block_##suffix,
#include "model/mixers.def"
#undef LQ_MIXER
};

const lq_block *const lq_ffns[] = {
#define LQ_FFN(NAME, suffix) &lq_block_##suffix,
#include "model/ffns.def"
#undef LQ_FFN
};
