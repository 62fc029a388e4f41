package validation

import (
	"context"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/api/crds"
)

// definition is a CustomResourceDefinition as the API server uses it.
type definition struct {
	namespaced bool
	structural *structuralschema.Structural
	schema     schemavalidation.SchemaValidator
	// rules is nil for a kind without x-kubernetes-validations.
	rules *cel.Validator
}

// readDefinition compiles the definition of a kind. It returns nil if there is none.
func readDefinition(kind string) (*definition, error) {
	files, err := crds.Files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		content, err := crds.Files.ReadFile(file.Name())
		if err != nil {
			return nil, err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(content, &crd); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
		if crd.Spec.Names.Kind == kind {
			return newDefinition(&crd)
		}
	}
	return nil, nil
}

func newDefinition(crd *apiextensionsv1.CustomResourceDefinition) (*definition, error) {
	var internal apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(crd.Spec.Versions[0].Schema.OpenAPIV3Schema, &internal, nil); err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(&internal)
	if err != nil {
		return nil, err
	}
	schema, _, err := schemavalidation.NewSchemaValidator(&internal)
	if err != nil {
		return nil, err
	}
	return &definition{namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped, structural: structural, schema: schema,
		rules: cel.NewValidator(structural, true, celconfig.PerCallLimit)}, nil
}

// validate checks a new object like the API server: it removes unknown fields and nulls, sets defaults, and evaluates the rules only if the values have the
// types that the rules expect. It also checks the status. It returns the object that would be stored.
func (d *definition) validate(ctx context.Context, content map[string]any) (map[string]any, field.ErrorList) {
	content = runtime.DeepCopyJSON(content)
	pruning.Prune(content, d.structural, true)
	defaulting.PruneNonNullableNullsWithoutDefaults(content, d.structural)
	defaulting.Default(content, d.structural)
	errs := d.metadata(content)
	errs = append(errs, schemavalidation.ValidateCustomResource(nil, content, d.schema)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, d.structural, content)...)
	if d.rules == nil || blocks(errs) {
		return content, errs
	}
	broken, _ := d.rules.Validate(ctx, nil, d.structural, content, nil, celconfig.RuntimeCELCostBudget)
	return content, append(errs, broken...)
}

// metadata checks metadata by the rules of all kinds.
func (d *definition) metadata(content map[string]any) field.ErrorList {
	path := field.NewPath("metadata")
	var meta metav1.ObjectMeta
	raw, _ := content["metadata"].(map[string]any)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &meta); err != nil {
		return field.ErrorList{field.Invalid(path, raw, err.Error())}
	}
	if d.namespaced && meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault // the default of kubectl
	}
	return validation.ValidateObjectMeta(&meta, d.namespaced, validation.NameIsDNSSubdomain, path)
}

// blocks reports whether the API server evaluates no rule because of an error.
func blocks(errs field.ErrorList) bool {
	for _, err := range errs {
		switch err.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return true
		}
	}
	return false
}
