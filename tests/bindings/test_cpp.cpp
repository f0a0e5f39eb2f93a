// The C++ layer: failures are exceptions, exceptions pass through callbacks, handles close themselves.
#include <dsv2/dsv2.hpp>

#include <cmath>
#include <iostream>
#include <sstream>

static int failures = 0;

#define CLAIM(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            failures++;                                                                                                \
            std::cerr << __FILE__ << ':' << __LINE__ << ": " << #condition << '\n';                                    \
        }                                                                                                              \
    } while (0)

template <class F> static dsv2_status status_of(F call) {
    try {
        call();
    } catch (const dsv2::error &failure) {
        CLAIM(failure.what()[0] != '\0');
        return failure.status();
    }
    return DSV2_OK;
}

template <class F> static std::string thrown_by(F call) {
    try {
        call();
    } catch (const std::domain_error &failure) {
        return failure.what();
    }
    return "";
}

static bool throws_from_callback(dsv2_phase, uint64_t, uint64_t) { throw std::domain_error("from the callback"); }

static void handles_move_and_outlive_their_model(const std::string &path) {
    std::unique_ptr<dsv2::model> model(new dsv2::model(path));
    dsv2::tokenizer tokenizer = model->tokenizer();
    dsv2::session first(*model);
    model.reset();
    first.feed({0, 5});
    dsv2::session second = std::move(first);
    first = second.fork();
    CLAIM(first.tokens() == second.tokens());
    CLAIM(tokenizer.decode(tokenizer.encode("naïve")) == "naïve");
}

static void failures_are_exceptions(const dsv2::model &model) {
    CLAIM(status_of([] { dsv2::model missing("/nothing here"); }) == DSV2_ERROR_IO);
    CLAIM(status_of([] { dsv2::tokenizer missing("/nothing here"); }) == DSV2_ERROR_IO);
    CLAIM(status_of([] { dsv2::inspect_snapshot("/nothing here"); }) != DSV2_OK);
    dsv2::session session(model);
    CLAIM(status_of([&] { session.sample(); }) == DSV2_ERROR_STATE);
    CLAIM(status_of([&] { session.feed({-1}); }) == DSV2_ERROR_ARGUMENT);
    CLAIM(status_of([&] { session.truncate(1); }) == DSV2_ERROR_ARGUMENT);
    CLAIM(session.length() == 0);
}

static void exceptions_pass_through_callbacks(const std::string &path, const dsv2::model &model) {
    CLAIM(thrown_by([&] { dsv2::model opened(path, dsv2::make<dsv2_model_options>(), throws_from_callback); }) ==
          "from the callback");
    dsv2::session session(model), other(model);
    const std::vector<int32_t> prompt(500, 7);
    for (dsv2::session *each : {&session, &other})
        each->set_progress(throws_from_callback);
    CLAIM(thrown_by([&] { session.feed(prompt); }) == "from the callback");
    std::vector<dsv2::step_item> items = {{&session, prompt, nullptr, DSV2_OK}, {&other, prompt, nullptr, DSV2_OK}};
    CLAIM(thrown_by([&] { dsv2::step(model, items); }) == "from the callback");
    CLAIM(items[0].status == DSV2_ERROR_CANCELLED && items[1].status == DSV2_ERROR_CANCELLED);
    CLAIM(session.length() == 0 && other.length() == 0);
    for (dsv2::session *each : {&session, &other})
        each->set_progress(nullptr);
    dsv2::step(model, items);
    CLAIM(session.length() == 500 && other.length() == 500);
    session.set_progress([](dsv2_phase, uint64_t, uint64_t) { return false; });
    CLAIM(status_of([&] { session.feed(prompt); }) == DSV2_ERROR_CANCELLED);
}

static void top_tokens_are_those_of_the_logits(const dsv2::model &model) {
    dsv2::session session(model);
    session.feed({0, 5, 9});
    const float *logits = session.logits();
    CLAIM(logits == session.logits());
    double sum = 0;
    for (uint32_t i = 0; i < session.vocab_size(); i++)
        sum += std::exp(double(logits[i]));
    for (const dsv2_token_probability &item : session.top_tokens(10)) {
        CLAIM(std::abs(double(logits[item.token]) - std::log(sum) - double(item.log_probability)) < 1e-4);
        CLAIM(session.log_probability(item.token) <= item.log_probability &&
              session.log_probability(item.token) >= item.log_probability);
    }
}

struct broken_buffer : std::streambuf {
    std::streamsize xsputn(const char *, std::streamsize) override { throw std::domain_error("from the stream"); }
    int_type overflow(int_type) override { throw std::domain_error("from the stream"); }
};

static void snapshots_go_through_streams(const dsv2::model &model) {
    dsv2::session session(model), other(model);
    session.feed({0, 5, 9});
    std::stringstream stream;
    session.save(stream);
    CLAIM(other.restore(stream) == 3);
    CLAIM(other.tokens() == session.tokens());
    CLAIM(other.sample() == session.sample());
    std::istringstream cut(stream.str().substr(0, stream.str().size() / 2));
    CLAIM(status_of([&] { other.restore(cut); }) != DSV2_OK);
    broken_buffer broken;
    std::ostream refusing(&broken);
    refusing.exceptions(std::ios::badbit);
    CLAIM(thrown_by([&] { session.save(refusing); }) == "from the stream");
    CLAIM(other.length() == 3 && session.length() == 3);
}

static void routing_counts_tokens(const dsv2::model &model) {
    dsv2::session session(model);
    session.feed({0, 5, 9});
    dsv2::routing routing = session.routing();
    uint64_t chosen = 0;
    for (const dsv2_expert_load &load : routing.experts(1))
        chosen += load.chosen;
    CLAIM(chosen == 3 * model.info().num_experts_per_tok);
    routing.merge(session.routing());
    CLAIM(routing.info().n_tokens == 6);
    CLAIM(routing.measure(1).max_over_mean >= 1);
    CLAIM(status_of([&] { routing.experts(0); }) == DSV2_ERROR_ARGUMENT);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    try {
        const dsv2::model model(argv[1]);
        handles_move_and_outlive_their_model(argv[1]);
        failures_are_exceptions(model);
        exceptions_pass_through_callbacks(argv[1], model);
        top_tokens_are_those_of_the_logits(model);
        snapshots_go_through_streams(model);
        routing_counts_tokens(model);
    } catch (const std::exception &failure) {
        std::cerr << "unexpected: " << failure.what() << '\n';
        failures++;
    }
    std::cout << failures << " failures\n";
    return failures != 0;
}
