// Which way up a picture is, by its EXIF, and turning it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "resize.h"

using Bytes = std::vector<uint8_t>;

// The orientation, 1 to 8, in a block of EXIF that starts with II or MM; 1 where it says nothing.
inline int orientation(const Bytes& exif) {
    const auto damaged = [] { return std::runtime_error("its EXIF cannot be read; save it without EXIF, upright"); };
    const bool little = exif.size() > 1 && exif[0] == 'I';
    const auto number = [&](size_t at, int length) {
        if (at + length > exif.size()) throw damaged();
        uint32_t value = 0;
        for (int i = 0; i < length; ++i) value = value << 8 | exif[little ? at + length - 1 - i : at + i];
        return value;
    };
    if (exif.size() < 8 || exif[0] != exif[1] || (exif[0] != 'I' && exif[0] != 'M') || number(2, 2) != 42)
        throw damaged();
    const size_t start = number(4, 4);
    const uint32_t entries = number(start, 2);
    for (uint32_t i = 0; i < entries; ++i) {
        const size_t entry = start + 2 + 12 * i;
        if (number(entry, 2) != 0x0112) continue;
        if (number(entry + 2, 2) != 3 || number(entry + 4, 4) != 1) throw damaged();
        const int found = static_cast<int>(number(entry + 8, 2));
        return found >= 1 && found <= 8 ? found : 1;
    }
    return 1;
}

// As a viewer shows it: orientations from 5 on swap the sides.
inline Picture upright(const Picture& from, int orientation) {
    if (orientation == 1) return from;
    const int w = from.width, h = from.height;
    const bool swapped = orientation >= 5;
    Picture to{swapped ? h : w, swapped ? w : h, from.channels, {}};
    for (int y = 0; y < to.height; ++y)
        for (int x = 0; x < to.width; ++x) {
            int column = swapped ? y : x, row = swapped ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) column = w - 1 - column;
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) row = h - 1 - row;
            const uint8_t* pixel = &from.pixels[(static_cast<size_t>(row) * w + column) * from.channels];
            to.pixels.insert(to.pixels.end(), pixel, pixel + from.channels);
        }
    return to;
}
