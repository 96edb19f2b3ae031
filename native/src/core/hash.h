/* hash.h - a fast hash of short byte strings, for open-addressing tables of names and vocabulary pieces. */
#ifndef LQ_CORE_HASH_H
#define LQ_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Multiply and fold: every input bit reaches the low bits, which index the tables. */
static inline uint64_t lq_hash_mix(uint64_t value) {
    value = (value ^ (value >> 32)) * 0xd6e8feb86659fd93u;
    value = (value ^ (value >> 32)) * 0xd6e8feb86659fd93u;
    return value ^ (value >> 32);
}

/* A table of names from a file needs a seed that the file's author cannot know: else its names could all collide. */
static inline uint64_t lq_hash(const void *bytes, size_t n_bytes, uint64_t seed) {
    const uint8_t *at = bytes;
    uint64_t hash = seed ^ (n_bytes * 0x9e3779b97f4a7c15u);
    while (n_bytes >= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        hash = lq_hash_mix(hash ^ word);
        at += 8;
        n_bytes -= 8;
    }
    uint64_t word = 0;
    for (size_t i = 0; i < n_bytes; i++) word |= (uint64_t)at[i] << (8 * i);
    return lq_hash_mix(hash ^ word);
}

#endif
