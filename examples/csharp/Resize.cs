using System;

/// <summary>Grey (1 channel) or RGB (3), rows from the top, channels interleaved.</summary>
public sealed class Picture
{
    public readonly int Width, Height, Channels;
    public readonly byte[] Pixels;

    public Picture(int width, int height, int channels)
    {
        (Width, Height, Channels) = (width, height, channels);
        Pixels = new byte[checked(width * height * channels)];
    }
}

/// <summary>
/// Pillow's bilinear resizing of 8-bit pictures, antialiased, equal to the last bit: weights are whole numbers of 22
/// binary places; width and height are resized one after the other, and each is rounded to 8 bits.
/// </summary>
public static class Resizing
{
    private sealed class Weights
    {
        public int[] First, Count;
        public int[,] Values;
    }

    private static Weights WeightsOf(int from, int to)
    {
        double scale = (double)from / to, width = Math.Max(scale, 1.0); // enlarging: plain bilinear
        int most = (int)Math.Ceiling(width) * 2 + 1;
        var found = new Weights { First = new int[to], Count = new int[to], Values = new int[to, most] };
        var triangle = new double[most];
        for (int x = 0; x < to; x++)
        {
            double centre = (x + 0.5) * scale, step = 1.0 / width, sum = 0;
            int first = Math.Max(0, (int)(centre - width + 0.5));
            int count = Math.Min(from, (int)(centre + width + 0.5)) - first;
            for (int i = 0; i < count; i++)
            {
                triangle[i] = Math.Max(0.0, 1.0 - Math.Abs((i + first - centre + 0.5) * step));
                sum += triangle[i];
            }
            for (int i = 0; i < count; i++)
            {
                double share = sum != 0 ? triangle[i] / sum : triangle[i];
                found.Values[x, i] = (int)(0.5 + share * (1 << 22));
            }
            (found.First[x], found.Count[x]) = (first, count);
        }
        return found;
    }

    /// <summary>One line: input pixels lie <c>stride</c> bytes apart from <c>at</c> on, output pixels likewise.</summary>
    private static void Line(byte[] from, int at, int stride, byte[] to, int toAt, int toStride, Weights weights)
    {
        for (int x = 0; x < weights.First.Length; x++)
        {
            int sum = 1 << 21;
            for (int i = 0; i < weights.Count[x]; i++)
                sum += from[at + (weights.First[x] + i) * stride] * weights.Values[x, i];
            to[toAt + x * toStride] = (byte)Math.Min(255, Math.Max(0, sum >> 22));
        }
    }

    private static Picture ResizeWidth(Picture from, int width)
    {
        if (width == from.Width) return from;
        int c = from.Channels;
        var weights = WeightsOf(from.Width, width);
        var to = new Picture(width, from.Height, c);
        for (int y = 0; y < from.Height; y++)
            for (int k = 0; k < c; k++)
                Line(from.Pixels, y * from.Width * c + k, c, to.Pixels, y * width * c + k, c, weights);
        return to;
    }

    private static Picture ResizeHeight(Picture from, int height)
    {
        if (height == from.Height) return from;
        int line = from.Channels * from.Width;
        var weights = WeightsOf(from.Height, height);
        var to = new Picture(from.Width, height, from.Channels);
        for (int x = 0; x < line; x++) Line(from.Pixels, x, line, to.Pixels, x, line, weights);
        return to;
    }

    /// <summary>Since Pillow 13 the height comes first where it loses more than twice what the width loses.</summary>
    public static Picture Resize(Picture from, int width, int height)
    {
        bool heightFirst = height < from.Height && from.Height - height > 2 * (from.Width - width);
        if (heightFirst) return ResizeWidth(ResizeHeight(from, height), width);
        return ResizeHeight(ResizeWidth(from, width), height);
    }
}
