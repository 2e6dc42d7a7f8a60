using System;
using System.IO;

/// <summary>
/// From a file to the network's input. <c>Shorter</c> 0: squashed to the size; else the shorter side becomes so long
/// and the middle is seen.
/// </summary>
public sealed class Intake
{
    public int Height, Width, Shorter;
    public double MaxMpx;

    /// <summary>(3, height, width), values from 0 to 1.</summary>
    public float[] Planes(string path)
    {
        var seen = Place(Png.Read(File.ReadAllBytes(path), MaxMpx));
        int left = (int)Math.Round((seen.Width - Width) / 2.0), top = (int)Math.Round((seen.Height - Height) / 2.0);
        var planes = new float[3 * Height * Width];
        for (int channel = 0, to = 0; channel < 3; channel++)
            for (int y = 0; y < Height; y++)
                for (int x = 0; x < Width; x++)
                {
                    int pixel = (top + y) * seen.Width + left + x;
                    planes[to++] = seen.Pixels[pixel * seen.Channels + channel % seen.Channels] / 255f;
                }
        return planes;
    }

    /// <summary>As large as the network's input, or larger: then its middle counts.</summary>
    private Picture Place(Picture picture)
    {
        if (Shorter == 0) return Resizing.Resize(picture, Width, Height);
        int shortest = Math.Min(picture.Width, picture.Height);
        int width = (int)((double)Shorter * picture.Width / shortest);
        int height = (int)((double)Shorter * picture.Height / shortest);
        return Resizing.Resize(picture, width, height);
    }
}
