using System;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Runtime.Serialization.Json;
using System.Xml;
using System.Xml.Linq;

/// <summary>
/// Verdicts of an exported model:  inspect FOLDER PICTURE.png ...
/// FOLDER is what `flawmap export` wrote. Exit codes: 0 all judged (NOK is a verdict, not a failure), 1 the model cannot
/// be used or gave no number, 2 usage, 3 a picture cannot be judged.
/// </summary>
public static class Program
{
    public static int Main(string[] args)
    {
        if (args.Length < 2)
        {
            Console.Error.WriteLine("usage: inspect FOLDER PICTURE.png ...   (FOLDER as written by flawmap export)");
            return 2;
        }
        try
        {
            var use = Read(Path.Combine(args[0], "use.json"));
            var intake = IntakeOf(use);
            var calibration = Read(Path.Combine(args[0], "calibration.json"));
            Refuse(calibration, use);
            using (var network = new Network(File.ReadAllBytes(Path.Combine(args[0], "model.onnx"))))
                return Judge(args.Skip(1).ToArray(), intake, network, calibration);
        }
        catch (Exception error)
        {
            Console.Error.WriteLine("inspect: " + args[0] + ": " + error.Message);
            return 1;
        }
    }

    private static int Judge(string[] pictures, Intake intake, Network network, XElement calibration)
    {
        double nok = Number(calibration, "threshold");
        bool reviews = Given(calibration, "review_threshold") != null;
        double review = reviews ? Number(calibration, "review_threshold") : nok;
        int failed = 0;
        foreach (string name in pictures)
        {
            int code = 3;
            try
            {
                float[] planes = intake.Planes(name);
                code = 1;
                float score = network.Score(planes, intake.Height, intake.Width);
                string verdict = score > nok ? "NOK" : score > review ? "REVIEW" : "OK";
                Console.WriteLine(string.Format(
                    CultureInfo.InvariantCulture, "{0,-6}  score {1:G9} (limit {2:G9})  {3}", verdict, score, nok, name));
            }
            catch (Exception error)
            {
                Console.Error.WriteLine("inspect: " + name + ": " + error.Message);
                failed = failed == 0 ? code : failed;
            }
        }
        return failed;
    }

    internal static Intake IntakeOf(XElement use)
    {
        var said = Given(use, "intake") ?? throw Bad("use.json has no intake; export again");
        // A rule that came later would change what the network sees: better no verdict than a wrong one.
        string[] known = { "size", "max_mpx", "resize" };
        foreach (var member in said.Elements().Where(one => !Null(one) && !known.Contains(one.Name.LocalName)))
            throw Bad("the model asks for '" + member.Name.LocalName + "', which this program cannot do; use flawmap");
        var size = said.Elements("size").Elements().Select(side => (int)XmlConvert.ToDouble(side.Value)).ToArray();
        if (size.Length != 2) throw Bad("intake.size is not height and width; export again");
        return new Intake
        {
            Height = size[0],
            Width = size[1],
            MaxMpx = Number(said, "max_mpx"),
            Shorter = Given(said, "resize") == null ? 0 : (int)Number(said, "resize"),
        };
    }

    private static void Refuse(XElement calibration, XElement use)
    {
        var views = calibration.Elements("views").Elements().Select(count => XmlConvert.ToDouble(count.Value)).ToArray();
        if (views.Length != 2 || views[1] > 1 || (Text(calibration, "rule") ?? "largest") != "largest")
            throw Bad("it judges parts of several views, or by their mean: only one view a part here");
        var held = use.Elements("parity").Elements("engines").Elements().Select(one => one.Value.Split(' ')[0]).ToList();
        string made = (Text(calibration, "engine") ?? "").Split(' ')[0];
        if (made != "onnxruntime" && !(held.Contains(made) && held.Contains("onnxruntime")))
            throw Bad("calibrated with " + made + ", against which ONNX Runtime was never held");
        if (Text(calibration, "unit") == "picture")
            Console.Error.WriteLine("calibrated per picture: these verdicts promise nothing for parts of several views");
        if (Text(calibration, "policy") == "f1-oracle")
            Console.Error.WriteLine("the threshold is an oracle: read off the answers, no operating point");
    }

    // ---- JSON as XML, which .NET has brought since its beginnings: an element a member, its kind in `type`

    internal static XElement Read(string path)
    {
        using (var reader = JsonReaderWriterFactory.CreateJsonReader(File.ReadAllBytes(path), XmlDictionaryReaderQuotas.Max))
            return XElement.Load(reader);
    }

    private static bool Null(XElement one) => (string)one.Attribute("type") == "null";

    private static XElement Given(XElement from, string name) => from.Elements(name).FirstOrDefault(one => !Null(one));

    private static string Text(XElement from, string name) => Given(from, name)?.Value;

    private static double Number(XElement from, string name)
    {
        string text = Text(from, name) ?? throw Bad(name + " is missing; export again");
        double value = XmlConvert.ToDouble(text);
        if (double.IsNaN(value) || double.IsInfinity(value)) throw Bad(name + " is not a number; export again");
        return value;
    }

    private static Exception Bad(string why) => new InvalidDataException(why);
}
