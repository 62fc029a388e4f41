package validation

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Validator checks objects. It is not safe for concurrent use.
type Validator struct {
	// definitions has the definition of each kind, compiled for the first object of the kind; nil for a kind without a definition.
	definitions map[string]*definition
}

// Validate returns the errors for which an API server would refuse a new object, in the API server's order. It returns none for kinds that it does not
// check. content is the object as it was written, with integers as int64; nil means all of object. Validate sets the defaults in a valid object of a kind
// of kubelb.k8c.io. It returns an error if it cannot check the object.
func (v *Validator) Validate(ctx context.Context, kind string, object client.Object, content map[string]any) (field.ErrorList, error) {
	switch o := object.(type) {
	case *corev1.Service:
		return service(o), nil
	case *corev1.Node:
		return node(o), nil
	case *discoveryv1.EndpointSlice:
		return endpointSlice(o), nil
	}
	d, err := v.definition(kind)
	if d == nil || err != nil {
		return nil, err
	}
	if content == nil {
		if content, err = runtime.DefaultUnstructuredConverter.ToUnstructured(object); err != nil {
			return nil, fmt.Errorf("%s %s: %w", kind, object.GetName(), err)
		}
	}
	stored, errs := d.validate(ctx, content)
	if len(errs) > 0 {
		return errs, nil
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(stored, object); err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, object.GetName(), err)
	}
	return nil, nil
}

func (v *Validator) definition(kind string) (*definition, error) {
	if d, known := v.definitions[kind]; known {
		return d, nil
	}
	d, err := readDefinition(kind)
	if err != nil {
		return nil, fmt.Errorf("CustomResourceDefinition of %s: %w", kind, err)
	}
	if v.definitions == nil {
		v.definitions = map[string]*definition{}
	}
	v.definitions[kind] = d
	return d, nil
}
