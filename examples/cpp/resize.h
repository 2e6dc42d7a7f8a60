// Pillow's bilinear resizing of 8-bit pictures, antialiased, equal to the last bit.
//
// Each output pixel is a weighted mean of the pixels under a triangle that is as wide as the reduction. Weights are
// whole numbers of 22 binary places; width and height are resized one after the other, each rounded to 8 bits.
// Compile with -ffp-contract=off where the processor can multiply and add in one step: a weight could round to its
// neighbour.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

struct Picture {
    int width = 0, height = 0, channels = 0;  // 1 grey, 3 RGB
    std::vector<uint8_t> pixels;              // rows from the top, channels interleaved
};

struct Weights {
    std::vector<int> first, count;  // per output pixel: the first input pixel, and how many
    std::vector<int32_t> values;    // `most` per output pixel
    int most = 0;
};

inline Weights weights(int in, int out) {
    const double scale = static_cast<double>(in) / out, width = std::max(scale, 1.0);  // enlarging: plain bilinear
    Weights found;
    found.most = static_cast<int>(std::ceil(width)) * 2 + 1;
    found.values.resize(static_cast<size_t>(out) * found.most);
    for (int x = 0; x < out; ++x) {
        const double centre = (x + 0.5) * scale, step = 1.0 / width;
        const int first = std::max(0, static_cast<int>(centre - width + 0.5));
        const int count = std::min(in, static_cast<int>(centre + width + 0.5)) - first;
        std::vector<double> triangle(count);
        double sum = 0;
        for (int i = 0; i < count; ++i) {
            triangle[i] = std::max(0.0, 1.0 - std::abs((i + first - centre + 0.5) * step));
            sum += triangle[i];
        }
        for (int i = 0; i < count; ++i) {
            const double share = sum != 0 ? triangle[i] / sum : triangle[i];
            found.values[static_cast<size_t>(x) * found.most + i] = static_cast<int32_t>(0.5 + share * (1 << 22));
        }
        found.first.push_back(first);
        found.count.push_back(count);
    }
    return found;
}

// One line of `out` pixels from pixels that lie `stride` bytes apart.
inline void resize_line(const uint8_t* from, size_t stride, uint8_t* to, size_t to_stride, const Weights& w) {
    for (size_t x = 0; x < w.first.size(); ++x) {
        int32_t sum = 1 << 21;
        for (int i = 0; i < w.count[x]; ++i) sum += from[(w.first[x] + i) * stride] * w.values[x * w.most + i];
        to[x * to_stride] = static_cast<uint8_t>(std::clamp(sum >> 22, 0, 255));
    }
}

inline Picture resize_width(const Picture& from, int width) {
    if (width == from.width) return from;
    const size_t c = from.channels, rows = from.height;
    const Weights w = weights(from.width, width);
    Picture to{width, from.height, from.channels, {}};
    to.pixels.resize(c * width * rows);
    for (size_t y = 0; y < rows; ++y)
        for (size_t k = 0; k < c; ++k)
            resize_line(&from.pixels[y * from.width * c + k], c, &to.pixels[y * width * c + k], c, w);
    return to;
}

inline Picture resize_height(const Picture& from, int height) {
    if (height == from.height) return from;
    const size_t line = static_cast<size_t>(from.channels) * from.width;
    const Weights w = weights(from.height, height);
    Picture to{from.width, height, from.channels, {}};
    to.pixels.resize(line * height);
    for (size_t x = 0; x < line; ++x) resize_line(&from.pixels[x], line, &to.pixels[x], line, w);
    return to;
}

// Since Pillow 13 the height comes first where it loses more than twice what the width loses; before, never.
inline Picture resize(const Picture& from, int width, int height) {
    const bool height_first = height < from.height && from.height - height > 2 * (from.width - width);
    if (height_first) return resize_width(resize_height(from, height), width);
    return resize_height(resize_width(from, width), height);
}
