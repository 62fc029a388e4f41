// Package manifest reads Kubernetes objects from YAML or JSON. It remembers the line of each field, so that a problem can be
// shown with its line.
package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	kjson "sigs.k8s.io/json"

	"kubelb.k8c.io/api/v1alpha1"
)

// Object is an object with its position in a file.
type Object struct {
	// Typed is a Service, Node, EndpointSlice, LoadBalancer, Addresses, Tenant or AddressPool; nil for any other kind.
	Typed client.Object
	// Content is the document, with integers as int64; nil if Typed is nil.
	Content map[string]any
	// Kind is the kind in the document.
	Kind string
	File string
	node *yaml.Node
}

// Error is a document that cannot be read.
type Error struct {
	File    string
	Line    int
	Message string
}

// Error returns file:line: message.
func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message) }

// newTyped returns an empty object if load balancing depends on the kind, else nil.
func newTyped(kind schema.GroupVersionKind) client.Object {
	switch kind {
	case corev1.SchemeGroupVersion.WithKind("Service"):
		return &corev1.Service{}
	case corev1.SchemeGroupVersion.WithKind("Node"):
		return &corev1.Node{}
	case discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"):
		return &discoveryv1.EndpointSlice{}
	case v1alpha1.GroupVersion.WithKind("LoadBalancer"):
		return &v1alpha1.LoadBalancer{}
	case v1alpha1.GroupVersion.WithKind("Addresses"):
		return &v1alpha1.Addresses{}
	case v1alpha1.GroupVersion.WithKind("Tenant"):
		return &v1alpha1.Tenant{}
	case v1alpha1.GroupVersion.WithKind("AddressPool"):
		return &v1alpha1.AddressPool{}
	}
	return nil
}

// Read reads all documents, and the items of lists, as kubectl prints them. Unknown fields are errors. It returns the objects
// that it could read, and all errors, each of them an *Error.
func Read(file string, in io.Reader) ([]Object, error) {
	var objects []Object
	var errs []error
	documents := yaml.NewDecoder(in)
	for {
		var document yaml.Node
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return objects, errors.Join(errs...)
		}
		if err != nil {
			return objects, errors.Join(append(errs, syntaxError(file, err))...)
		}
		found, err := read(file, document.Content[0])
		objects = append(objects, found...)
		if err != nil {
			errs = append(errs, err)
		}
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntaxError returns an Error with the line that the library's message names.
func syntaxError(file string, err error) *Error {
	match := yamlLine.FindStringSubmatch(err.Error())
	if match == nil {
		return &Error{file, 1, err.Error()}
	}
	line, _ := strconv.Atoi(match[1])
	return &Error{file, max(line, 1), strings.TrimPrefix(err.Error(), match[0])}
}

// read reads an object or a list of objects. An empty document has none.
func read(file string, node *yaml.Node) ([]Object, error) {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil, nil
	}
	if node.Kind != yaml.MappingNode {
		return nil, &Error{file, node.Line, "not a Kubernetes object: expected apiVersion, kind and metadata"}
	}
	var head struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
	}
	if err := node.Decode(&head); err != nil || head.APIVersion == "" || head.Kind == "" {
		return nil, &Error{file, node.Line, "not a Kubernetes object: apiVersion and kind must be set"}
	}
	if head.Kind == "List" || strings.HasSuffix(head.Kind, "List") && field(node, "items") != nil {
		return readItems(file, field(node, "items"))
	}
	object := Object{Kind: head.Kind, File: file, node: node}
	group, err := schema.ParseGroupVersion(head.APIVersion)
	if err != nil {
		return nil, &Error{file, object.Line("apiVersion"), err.Error()}
	}
	if object.Typed = newTyped(group.WithKind(head.Kind)); object.Typed != nil {
		if err := object.decode(); err != nil {
			return nil, err
		}
	}
	return []Object{object}, nil
}

func readItems(file string, items *yaml.Node) ([]Object, error) {
	if items == nil {
		return nil, nil
	}
	var objects []Object
	var errs []error
	for _, item := range items.Content {
		found, err := read(file, item)
		objects = append(objects, found...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	return objects, errors.Join(errs...)
}

var quotedField = regexp.MustCompile(`"([^"]+)"`)

// decode fills Typed like the API server's strict decoder.
func (o *Object) decode() error {
	var value any
	if err := o.node.Decode(&value); err != nil {
		return syntaxError(o.File, err)
	}
	document, err := json.Marshal(value)
	if err != nil {
		return &Error{o.File, o.node.Line, err.Error()}
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(document, &o.Content); err != nil {
		return &Error{o.File, o.node.Line, err.Error()}
	}
	unknown, err := kjson.UnmarshalStrict(document, o.Typed)
	if err != nil {
		return o.wrongType(err)
	}
	var errs []error
	for _, problem := range unknown {
		line := o.node.Line
		if match := quotedField.FindStringSubmatch(problem.Error()); match != nil {
			line = o.Line(match[1])
		}
		errs = append(errs, &Error{o.File, line, fmt.Sprintf("%s %s: %s", o.Kind, o.Typed.GetName(), problem)})
	}
	return errors.Join(errs...)
}

var wrongType = regexp.MustCompile(`cannot unmarshal (\w+)[^ ]* into Go struct field \w+\.([\w.]+) of type ([\w.\[\]*]+)`)

// wrongType finds the line of a value that has the wrong type. The decoder names the field without the positions in lists, so
// wrongType takes the first value of that kind.
func (o *Object) wrongType(err error) error {
	match := wrongType.FindStringSubmatch(err.Error())
	if match == nil {
		return &Error{o.File, o.node.Line, fmt.Sprintf("%s: %s", o.Kind, strings.TrimPrefix(err.Error(), "json: "))}
	}
	kind, path, want := match[1], match[2], match[3]
	line := o.Line(path)
	if node := firstOfKind(o.node, strings.Split(path, "."), kind); node != nil {
		line = node.Line
	}
	return &Error{o.File, line, fmt.Sprintf("%s: %s is a %s where %s is expected", o.Kind, path, kind, strings.TrimPrefix(want, "*"))}
}

// kindOf returns the kind of a value, in the decoder's words.
func kindOf(node *yaml.Node) string {
	switch node.ShortTag() {
	case "!!str":
		return "string"
	case "!!int", "!!float":
		return "number"
	case "!!bool":
		return "bool"
	case "!!seq":
		return "array"
	}
	return "object"
}

// firstOfKind returns the first value of the kind at the path. It searches all elements of lists.
func firstOfKind(node *yaml.Node, path []string, kind string) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if len(path) == 0 && kindOf(node) == kind {
		return node
	}
	if node.Kind == yaml.SequenceNode {
		for _, element := range node.Content {
			if found := firstOfKind(element, path, kind); found != nil {
				return found
			}
		}
		return nil
	}
	if len(path) == 0 {
		return nil
	}
	if value := field(node, path[0]); value != nil {
		return firstOfKind(value, path[1:], kind)
	}
	return nil
}

// Line returns the line of a field such as spec.ports[0].protocol. If the field is missing, it returns the line of the nearest
// enclosing field. After metadata.annotations and metadata.labels the rest of the path is one key.
func (o Object) Line(path string) int {
	if o.node == nil {
		return 0
	}
	line, node := o.node.Line, o.node
	for rest := path; rest != ""; {
		var step string
		step, rest = nextStep(rest)
		key, child := find(node, step)
		if child == nil {
			return line
		}
		line, node = key.Line, child
		if step == "annotations" || step == "labels" {
			if key, child := find(node, rest); child != nil {
				return key.Line
			}
			return line
		}
	}
	return line
}

// nextStep splits the first name or [index] off a path.
func nextStep(path string) (step, rest string) {
	if strings.HasPrefix(path, "[") {
		step, rest, _ = strings.Cut(path[1:], "]")
		return "[" + step, strings.TrimPrefix(rest, ".")
	}
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		return path, ""
	}
	return path[:end], strings.TrimPrefix(path[end:], ".")
}

// find returns the node of the step's key, which has the line, and the value.
func find(node *yaml.Node, step string) (key, value *yaml.Node) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if index, isIndex := strings.CutPrefix(step, "["); isIndex {
		i, err := strconv.Atoi(index)
		if err != nil || node.Kind != yaml.SequenceNode || i < 0 || i >= len(node.Content) {
			return nil, nil
		}
		return node.Content[i], node.Content[i]
	}
	if node.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == step {
			return node.Content[i], node.Content[i+1]
		}
	}
	return nil, nil
}

func field(node *yaml.Node, name string) *yaml.Node {
	_, value := find(node, name)
	return value
}
