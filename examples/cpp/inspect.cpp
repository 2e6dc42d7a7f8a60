// Verdicts of an exported model, without Python.
//
//   inspect FOLDER PICTURE ...
//
// FOLDER is what `flawmap export` wrote. One line a picture: verdict, score, limit, name. A picture that cannot be
// judged gets a line on stderr instead, and the exit code says so: 0 all judged (NOK is a verdict, not a failure),
// 1 the model cannot be used or gave no number, 2 usage, 3 a picture cannot be judged.

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "intake.h"
#include "json.h"
#include "network.h"

namespace {

Json read(const std::string& path) {
    try {
        return JsonReader(contents(path)).read();
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}

std::string first_word(const std::string& text) { return text.substr(0, text.find(' ')); }

struct Limits {
    double nok = 0, review = 0;  // above `nok` a part is NOK; above `review`, where there is one, a person looks
    bool reviews = false;

    Limits(const Json& said, const Json& engines_held_together) {
        nok = said["threshold"].as_number("threshold");
        reviews = !said["review_threshold"].null();
        if (reviews) review = said["review_threshold"].as_number("review_threshold");
        const auto& views = said["views"].as_array("views");
        const std::string rule = said["rule"].null() ? "largest" : said["rule"].as_text("rule");
        if (views.size() != 2 || views[1].as_number("views") > 1 || rule != "largest")
            throw std::runtime_error("it judges parts of several views, or by their mean: only one view a part here");
        const std::string made = first_word(said["engine"].as_text("engine"));
        const auto held = [&](const std::string& name) {
            for (const Json& engine : engines_held_together.items)
                if (first_word(engine.text) == name) return true;
            return false;
        };
        if (made != "onnxruntime" && !(held(made) && held("onnxruntime")))
            throw std::runtime_error("calibrated with " + made + ", against which ONNX Runtime was never held");
        if (!said["unit"].null() && said["unit"].as_text("unit") == "picture")
            std::fputs("calibrated per picture: these verdicts promise nothing for parts of several views\n", stderr);
        if (said["policy"].as_text("policy") == "f1-oracle")
            std::fputs("the threshold is an oracle: read off the answers, no operating point\n", stderr);
    }

    const char* verdict(double score) const {
        return score > nok ? "NOK" : reviews && score > review ? "REVIEW" : "OK";
    }
};

}  // namespace

int main(int count, char** words) {
    if (count < 3) {
        std::fputs("usage: inspect FOLDER PICTURE ...   (FOLDER as written by flawmap export)\n", stderr);
        return 2;
    }
    const std::string folder = words[1];
    int failed = 0;
    try {
        const Json use = read(folder + "/use.json");
        const Intake intake(use["intake"]);
        const Limits limits(read(folder + "/calibration.json"), use["parity"]["engines"]);
        const Network network(contents(folder + "/model.onnx"));
        for (int i = 2; i < count; ++i) {
            std::vector<float> planes;
            try {
                planes = intake(words[i]);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "inspect: %s: %s\n", words[i], error.what());
                failed = failed ? failed : 3;
                continue;
            }
            try {
                const float score = network.score(planes, intake.height, intake.width);
                std::printf("%-6s  score %.9g (limit %.9g)  %s\n", limits.verdict(score), score, limits.nok, words[i]);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "inspect: %s: %s\n", words[i], error.what());
                failed = failed ? failed : 1;
            }
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "inspect: %s: %s\n", folder.c_str(), error.what());
        return 1;
    }
    return std::fflush(stdout) == 0 ? failed : 1;
}
