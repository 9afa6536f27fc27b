/* CRC-32 of zlib, for frames: their sizes are multiples of 8.

   Where the processor multiplies without carries, nothing is looked up: at the pace of a training
   loop the tables would have left its caches, and finding each line again costs more than the row.

   Gopal et al. 2009, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (the constants
   are the paper's, for the reflected polynomial); with tables: Kounavis and Berry 2008,
   doi 10.1109/TC.2008.85. */

#ifndef QIGSTORE_CRC32_H
#define QIGSTORE_CRC32_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* -- eight bytes at a time, by tables ---------------------------------------------------------- */

static uint32_t crc_table[8][256];

static void
make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        crc_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] = crc_table[k - 1][i] >> 8 ^ crc_table[0][crc_table[k - 1][i] & 255];
}

static uint32_t
crc32_by_tables(const unsigned char *data, size_t size, uint32_t start)
{
    uint32_t crc = ~start;
    for (; size; size -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = crc_table[7][word & 255] ^ crc_table[6][word >> 8 & 255]
            ^ crc_table[5][word >> 16 & 255] ^ crc_table[4][word >> 24 & 255]
            ^ crc_table[3][word >> 32 & 255] ^ crc_table[2][word >> 40 & 255]
            ^ crc_table[1][word >> 48 & 255] ^ crc_table[0][word >> 56];
    }
    return ~crc;
}

static uint32_t (*crc32_of)(const unsigned char *, size_t, uint32_t) = crc32_by_tables;

/* -- sixteen bytes at a time, by carry-less products -------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__)
#define QIGSTORE_CRC32_BY_PRODUCTS
#include <immintrin.h>

__attribute__((target("pclmul,sse4.1"))) static uint32_t
crc32_by_products(const unsigned char *data, size_t size, uint32_t start)
{
    const __m128i by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i by_8 = _mm_set_epi64x(0, 0x163cd6124);
    const __m128i reduce = _mm_set_epi64x(0x1f7011641, 0x1db710641);
    const __m128i low_words = _mm_setr_epi32(~0, 0, ~0, 0);
    __m128i crc = _mm_cvtsi32_si128((int)~start), rest;

    if (size == 0)
        return start;
    /* Zeros in front change nothing, once the start is in the first word behind them. */
    if (size % 16) {
        crc = _mm_slli_si128(_mm_xor_si128(crc, _mm_loadl_epi64((const __m128i *)data)), 8);
        data += 8, size -= 8;
    }
    else {
        crc = _mm_xor_si128(crc, _mm_loadu_si128((const __m128i *)data));
        data += 16, size -= 16;
    }
    for (; size; size -= 16, data += 16) {
        rest = _mm_clmulepi64_si128(crc, by_16, 0x00);
        crc = _mm_clmulepi64_si128(crc, by_16, 0x11);
        crc = _mm_xor_si128(_mm_xor_si128(crc, rest), _mm_loadu_si128((const __m128i *)data));
    }
    /* 128 bits to 64, to 32 (Barrett). */
    rest = _mm_clmulepi64_si128(crc, by_16, 0x10);
    crc = _mm_xor_si128(_mm_srli_si128(crc, 8), rest);
    rest = _mm_srli_si128(crc, 4);
    crc = _mm_clmulepi64_si128(_mm_and_si128(crc, low_words), by_8, 0x00);
    crc = _mm_xor_si128(crc, rest);
    rest = _mm_clmulepi64_si128(_mm_and_si128(crc, low_words), reduce, 0x10);
    rest = _mm_clmulepi64_si128(_mm_and_si128(rest, low_words), reduce, 0x00);
    return ~(uint32_t)_mm_extract_epi32(_mm_xor_si128(crc, rest), 1);
}
#endif

/* Take the way that this processor has. */
static void
choose_crc32(void)
{
    make_crc_table();
#ifdef QIGSTORE_CRC32_BY_PRODUCTS
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"))
        crc32_of = crc32_by_products;
#endif
}

#endif
