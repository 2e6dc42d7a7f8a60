using System;
using System.IO;
using System.IO.Compression;
using System.Text;

/// <summary>
/// PNG of 8 bits and less: grey, palette, RGB, with or without alpha, laid over black. What is not read here throws
/// InvalidDataException: 16 bits, interlacing, a transparent colour, EXIF or XMP (which may turn a picture).
/// </summary>
public sealed class Png
{
    private int width, height, bits, kind;
    private byte[] palette = { }, alpha = { };
    private readonly MemoryStream packed = new MemoryStream();

    public static Picture Read(byte[] file, double maxMpx)
    {
        var png = new Png();
        png.Chunks(file, maxMpx);
        return png.Colours(png.Rows());
    }

    private static Exception Bad(string why) => new InvalidDataException(why);

    private static int Number(byte[] from, int at) =>
        from[at] << 24 | from[at + 1] << 16 | from[at + 2] << 8 | from[at + 3];

    private void Chunks(byte[] file, double maxMpx)
    {
        byte[] start = { 0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A };
        for (int i = 0; i < 8; i++)
            if (file.Length < 8 || file[i] != start[i]) throw Bad("not a PNG; save it as a grey or RGB PNG of 8 bits");
        bool ended = false;
        for (int at = 8; !ended;)
        {
            if (at + 12 > file.Length) throw Bad("truncated; take or copy the picture again");
            int length = Number(file, at);
            if (length < 0 || length > file.Length - at - 12) throw Bad("truncated; take or copy the picture again");
            if ((int)Crc(file, at + 4, length + 4) != Number(file, at + 8 + length))
                throw Bad("damaged (a checksum is wrong); take or copy the picture again");
            string name = Encoding.ASCII.GetString(file, at + 4, 4);
            if (at == 8 != (name == "IHDR")) throw Bad("damaged; its header is not where it belongs");
            ended = Chunk(name, new ArraySegment<byte>(file, at + 8, length), maxMpx);
            at += 12 + length;
        }
    }

    /// <summary>True at the end of the picture.</summary>
    private bool Chunk(string name, ArraySegment<byte> part, double maxMpx)
    {
        byte[] data = new byte[part.Count];
        Buffer.BlockCopy(part.Array, part.Offset, data, 0, part.Count);
        string text = Encoding.ASCII.GetString(data, 0, Math.Min(data.Length, 21));
        switch (name)
        {
            case "IHDR": Header(data, maxMpx); break;
            case "PLTE": palette = data; break;
            case "IDAT": packed.Write(data, 0, data.Length); break;
            case "IEND": return true;
            case "tRNS":
                if (kind != 3) throw Bad("a transparent colour is not read here; save it without");
                alpha = data;
                break;
            case "acTL": throw Bad("holds several frames; save each as a picture of its own");
            case "eXIf": throw Bad("holds EXIF, which may turn it; save it without, upright");
            case "tEXt": case "zTXt": case "iTXt":
                if (text.StartsWith("XML:com.adobe.xmp", StringComparison.Ordinal) || text == "Raw profile type exif")
                    throw Bad("holds XMP or EXIF as text, which may turn it; save it without");
                break;
            default:
                if (char.IsUpper(name[0])) throw Bad("holds a part '" + name + "' that nobody can leave out");
                break;
        }
        return false;
    }

    private void Header(byte[] data, double maxMpx)
    {
        if (data.Length != 13) throw Bad("damaged; its header has another length");
        (width, height, bits, kind) = (Number(data, 0), Number(data, 4), data[8], data[9]);
        if (width < 1 || height < 1) throw Bad("has no pixels");
        if ((double)width * height > maxMpx * 1e6)
            throw Bad("more megapixels than the model's max_mpx; crop or reduce it");
        if (bits == 16) throw Bad("16 bits a channel are not read here; use flawmap");
        bool few = bits == 1 || bits == 2 || bits == 4;
        if (!(kind == 0 || kind == 3 ? few || bits == 8 : (kind == 2 || kind == 4 || kind == 6) && bits == 8))
            throw Bad("damaged; there is no such kind of PNG");
        if (data[10] != 0 || data[11] != 0 || data[12] != 0) throw Bad("interlaced, which is not read here; save it plain");
    }

    /// <summary>The samples as in the file, one byte each.</summary>
    private byte[] Rows()
    {
        int channels = kind == 2 ? 3 : kind == 4 ? 2 : kind == 6 ? 4 : 1;
        int length = (width * channels * bits + 7) / 8, step = Math.Max(1, channels * bits / 8);
        byte[] all = Inflated(checked((length + 1) * height));
        var samples = new byte[checked(width * height * channels)];
        byte[] above = new byte[length], row = new byte[length];
        for (int y = 0, to = 0; y < height; y++)
        {
            int filter = all[y * (length + 1)];
            if (filter > 4) throw Bad("damaged; there is no such filter");
            for (int x = 0; x < length; x++)
            {
                int a = x < step ? 0 : row[x - step], b = above[x], c = x < step ? 0 : above[x - step];
                int guess = filter == 1 ? a : filter == 2 ? b : filter == 3 ? (a + b) / 2 : filter == 4 ? Paeth(a, b, c) : 0;
                row[x] = (byte)(all[y * (length + 1) + 1 + x] + guess);
            }
            for (int x = 0; x < width * channels; x++)
                samples[to++] = (byte)(row[x * bits / 8] >> (8 - bits - x * bits % 8) & (1 << bits) - 1);
            (above, row) = (row, above);
        }
        return samples;
    }

    private static int Paeth(int a, int b, int c)
    {
        int p = a + b - c, pa = Math.Abs(p - a), pb = Math.Abs(p - b), pc = Math.Abs(p - c);
        return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
    }

    /// <summary>The zlib stream, which must hold so many bytes and their checksum.</summary>
    private byte[] Inflated(int count)
    {
        byte[] stream = packed.ToArray(), found = new byte[count];
        if (stream.Length < 6 || (stream[0] & 15) != 8 || (stream[0] << 8 | stream[1]) % 31 != 0 || (stream[1] & 32) != 0)
            throw Bad("damaged; it is not packed as a PNG is");
        using (var source = new DeflateStream(new MemoryStream(stream, 2, stream.Length - 6), CompressionMode.Decompress))
        {
            int got = 0;
            for (int more = 1; more > 0 && got < count; got += more) more = source.Read(found, got, count - got);
            if (got < count || source.ReadByte() >= 0) throw Bad("truncated or damaged; take or copy the picture again");
        }
        uint low = 1, high = 0;
        foreach (byte value in found)
        {
            low = (low + value) % 65521;
            high = (high + low) % 65521;
        }
        if ((int)(high << 16 | low) != Number(stream, stream.Length - 4))
            throw Bad("damaged (a checksum is wrong); take or copy the picture again");
        return found;
    }

    private Picture Colours(byte[] samples)
    {
        if (kind == 0)
        {
            var grey = new Picture(width, height, 1);
            for (int i = 0; i < samples.Length; i++) grey.Pixels[i] = (byte)(samples[i] * 255 / ((1 << bits) - 1));
            return grey;
        }
        var rgb = new Picture(width, height, 3);
        bool seen = false;
        for (int i = 0; i < width * height; i++)
        {
            int index = kind == 3 ? samples[i] : 0, opacity = 255;
            if (kind == 3 && index * 3 + 2 >= palette.Length) throw Bad("damaged; a colour that the palette lacks");
            if (kind == 3 && index < alpha.Length) opacity = alpha[index];
            if (kind == 4) opacity = samples[2 * i + 1];
            if (kind == 6) opacity = samples[4 * i + 3];
            seen |= opacity > 0;
            for (int k = 0; k < 3; k++)
            {
                int value = kind == 3 ? palette[3 * index + k] : kind == 4 ? samples[2 * i] : samples[(kind == 6 ? 4 : 3) * i + k];
                rgb.Pixels[3 * i + k] = (byte)((value * opacity + 127) / 255); // laid over black
            }
        }
        if (!seen) throw Bad("transparent everywhere; save it without alpha");
        return rgb;
    }

    private static uint Crc(byte[] data, int at, int count)
    {
        uint crc = uint.MaxValue;
        for (int i = at; i < at + count; i++)
        {
            crc ^= data[i];
            for (int bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
        }
        return ~crc;
    }
}
