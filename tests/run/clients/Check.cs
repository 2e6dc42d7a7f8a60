// What the tests ask of the C# client besides its verdicts.
//   Check resize          sizes and pixels on stdin, pixels on stdout
//   Check planes USE ...  the network's input of each picture on stdout
using System;
using System.IO;

public static class Check
{
    public static int Main(string[] args)
    {
        var output = new BinaryWriter(Console.OpenStandardOutput());
        try
        {
            if (args[0] == "resize") Resize(new BinaryReader(Console.OpenStandardInput()), output);
            else Planes(args, output);
        }
        catch (Exception error)
        {
            Console.Error.WriteLine(error.Message);
            return 3;
        }
        output.Flush();
        return 0;
    }

    private static void Resize(BinaryReader input, BinaryWriter output)
    {
        for (byte[] size = input.ReadBytes(20); size.Length == 20; size = input.ReadBytes(20))
        {
            var from = new Picture(BitConverter.ToInt32(size, 0), BitConverter.ToInt32(size, 4), BitConverter.ToInt32(size, 8));
            input.ReadBytes(from.Pixels.Length).CopyTo(from.Pixels, 0);
            output.Write(Resizing.Resize(from, BitConverter.ToInt32(size, 12), BitConverter.ToInt32(size, 16)).Pixels);
        }
    }

    private static void Planes(string[] args, BinaryWriter output)
    {
        var intake = Program.IntakeOf(Program.Read(args[1]));
        for (int i = 2; i < args.Length; i++)
            foreach (float value in intake.Planes(args[i])) output.Write(value);
    }
}
