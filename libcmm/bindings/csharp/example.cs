using System;
using LibCmm;

class Example
{
    static void Main()
    {
        // One tree of depth 1: three neurons of width 2. Two tokens.
        float[] wIn = {1, 0, 0, 1, 1, 1}, wOut = {1, 2, 3, 4, 5, 6};
        float[] x = {1, 2, -1, 3}, y = new float[4];
        var shape = new Shape {Trees = 1, Depth = 1, DIn = 2, DOut = 2, Activation = Activation.Relu};
        new Layer<float>(shape, wIn, wOut).Forward(x, y); // or a CmmException, an ArgumentException
        Console.WriteLine("{0} {1} {2} {3}", y[0], y[1], y[2], y[3]);
    }
}
