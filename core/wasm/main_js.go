package main

import (
	"syscall/js"

	"kubelb.k8c.io/core/explain"
)

func main() {
	setUpMemory()
	js.Global().Set("kubelbExplain", js.FuncOf(func(_ js.Value, arguments []js.Value) any {
		if len(arguments) != 1 || arguments[0].Type() != js.TypeString {
			return string(explain.JSON(nil))
		}
		return string(explain.JSON([]byte(arguments[0].String())))
	}))
	select {} // the page or the process ends it
}
