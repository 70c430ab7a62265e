package main

import (
	"fmt"
	"log"

	cmm "github.com/libcmm/libcmm/libcmm/bindings/go"
)

func main() {
	// One tree of depth 1: three neurons of width 2. Two tokens.
	wIn, wOut := []float32{1, 0, 0, 1, 1, 1}, []float32{1, 2, 3, 4, 5, 6}
	x, y := []float32{1, 2, -1, 3}, make([]float32, 4)
	layer, err := cmm.New(cmm.Shape{Trees: 1, Depth: 1, In: 2, Out: 2, Activation: cmm.Relu}, wIn, wOut, nil)
	if err == nil {
		err = layer.Forward(x, y, nil, cmm.Run{})
	}
	if err != nil { // a cmm.Status, or a *cmm.SizeError for an array of another size
		log.Fatal(err)
	}
	fmt.Println(y[0], y[1], y[2], y[3])
}
