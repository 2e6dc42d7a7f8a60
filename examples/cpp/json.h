// JSON in the few lines that use.json and calibration.json need: values, no writing. Errors say where in the text.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Json {
    enum Kind { Null, Bool, Number, String, Array, Object } kind = Null;
    bool truth = false;
    double number = 0;
    std::string text;
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;

    bool null() const { return kind == Null; }

    // A null where there is no such member.
    const Json& operator[](const std::string& name) const {
        static const Json nothing;
        for (const auto& member : members)
            if (member.first == name) return member.second;
        return nothing;
    }

    double as_number(const std::string& name) const { return of(Number, name, "a number").number; }
    const std::string& as_text(const std::string& name) const { return of(String, name, "a text").text; }
    const std::vector<Json>& as_array(const std::string& name) const { return of(Array, name, "a list").items; }

   private:
    const Json& of(Kind wanted, const std::string& name, const char* what) const {
        if (kind != wanted) throw std::runtime_error(name + " is missing or not " + what + "; export again");
        return *this;
    }
};

class JsonReader {
   public:
    explicit JsonReader(const std::string& text) : text_(text) {}

    Json read() {
        Json value = this->value(0);
        space();
        if (at_ != text_.size()) fail("nothing more");
        return value;
    }

   private:
    const std::string& text_;
    size_t at_ = 0;

    [[noreturn]] void fail(const char* wanted) const {
        throw std::runtime_error("not JSON: " + std::string(wanted) + " expected at byte " + std::to_string(at_));
    }
    void space() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_]) ++at_;
    }
    bool take(const char* word) {
        const size_t length = std::strlen(word);
        if (text_.compare(at_, length, word) != 0) return false;
        at_ += length;
        return true;
    }
    void expect(const char* word) {
        space();
        if (!take(word)) fail(word);
    }

    Json value(int depth) {
        if (depth > 64) fail("less nesting");
        space();
        Json found;
        if (take("null")) return found;
        if (take("true") || take("false")) {
            found.kind = Json::Bool;
            found.truth = text_[at_ - 2] == 'u';
        } else if (at_ < text_.size() && text_[at_] == '"') {
            found.kind = Json::String;
            found.text = string();
        } else if (take("[")) {
            found.kind = Json::Array;
            for (space(); !take("]"); space()) {
                if (!found.items.empty()) expect(",");
                found.items.push_back(value(depth + 1));
            }
        } else if (take("{")) {
            found.kind = Json::Object;
            for (space(); !take("}"); space()) {
                if (!found.members.empty()) expect(",");
                space();
                std::string name = string();
                expect(":");
                found.members.emplace_back(std::move(name), value(depth + 1));
            }
        } else {
            found.kind = Json::Number;
            found.number = number();
        }
        return found;
    }

    double number() {
        const size_t end = text_.find_first_not_of("+-.0123456789eE", at_);
        const std::string digits = text_.substr(at_, end == std::string::npos ? end : end - at_);
        char* rest = nullptr;
        const double value = std::strtod(digits.c_str(), &rest);
        if (digits.empty() || *rest) fail("a value");
        at_ += digits.size();
        return value;
    }

    // Escapes other than \uXXXX are looked up; of \uXXXX only ASCII is kept, since no name or number here needs more.
    std::string string() {
        if (!take("\"")) fail("\"");
        std::string found;
        while (at_ < text_.size() && text_[at_] != '"') {
            if (text_[at_] != '\\') {
                found += text_[at_++];
                continue;
            }
            if (++at_ >= text_.size()) break;
            const char* known = std::strchr("\"\"\\\\//b\bf\fn\nr\rt\t", text_[at_]);
            if (text_[at_] == 'u' && at_ + 4 < text_.size()) {
                const long code = std::strtol(text_.substr(at_ + 1, 4).c_str(), nullptr, 16);
                found += code < 128 ? static_cast<char>(code) : '?';
                at_ += 5;
            } else if (known && *known) {
                found += known[1];
                ++at_;
            } else {
                fail("an escape");
            }
        }
        if (!take("\"")) fail("\"");
        return found;
    }
};
