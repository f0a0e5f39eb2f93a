/* libdsv2: how public declarations are marked. The other headers include this one, which is of no use by itself. */
#ifndef DSV2_EXPORT_H
#define DSV2_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define DSV2_API __attribute__((visibility("default")))
#define DSV2_CHECK_RESULT __attribute__((warn_unused_result))
#define DSV2_PRINTF(format_index, first_argument) __attribute__((format(printf, format_index, first_argument)))
#else
#define DSV2_API
#define DSV2_CHECK_RESULT
#define DSV2_PRINTF(format_index, first_argument)
#endif

#ifdef __cplusplus
#define DSV2_BEGIN_DECLS extern "C" {
#define DSV2_END_DECLS }
#else
#define DSV2_BEGIN_DECLS
#define DSV2_END_DECLS
#endif

#endif
