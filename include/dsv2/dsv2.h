/* libdsv2: run DeepSeek-V2 models inside a program. This header includes all the others.
 *
 * The library has three handles:
 *   dsv2_model      weights and configuration, opened once, shared by all threads        <dsv2/model.h>
 *   dsv2_tokenizer  text to token ids and back; a model has one, or it is opened alone   <dsv2/tokenizer.h>
 *   dsv2_session    one sequence of tokens with its latent KV cache and its sampler      <dsv2/session.h>
 * The host drives: it encodes text, feeds ids, samples the next id, and decides what to do with that id. Sessions can
 * be forked, rewound, saved and restored (<dsv2/snapshot.h>), sampled in many ways (<dsv2/sampling.h>), and watched
 * while they use the experts (<dsv2/routing.h>). Failures are status codes with a message (<dsv2/error.h>).
 *
 * What a host may rely on:
 *   - The library never ends the process, prints, forks, installs signal handlers or changes settings of the process.
 *   - A failed call leaves its session as it was.
 *   - Floating-point modes (rounding, flushing to zero, traps) and exception flags of a thread are after each call what
 *     they were before. Calls compute with modes of their own; the host's callbacks run with the host's modes.
 *   - The library's threads block all signals but those of faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS,
 *     SIGABRT), which reach the host's handlers.
 *   - A session's logits depend neither on the number of threads nor on what else runs.
 */
#ifndef DSV2_H
#define DSV2_H

#include <dsv2/version.h>
#include <dsv2/error.h>
#include <dsv2/model.h>
#include <dsv2/tokenizer.h>
#include <dsv2/sampling.h>
#include <dsv2/session.h>
#include <dsv2/snapshot.h>
#include <dsv2/routing.h>

#endif
