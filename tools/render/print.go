package render

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
)

// Document is a Result in the form for JSON and YAML.
type Document struct {
	Assumed       []string                 `json:"assumed,omitempty"`
	LoadBalancers []*v1alpha1.LoadBalancer `json:"loadBalancers,omitempty"`
	Addresses     []*v1alpha1.Addresses    `json:"addresses,omitempty"`
	Model         model.Snapshot           `json:"model"`
	// Text is the model as text, Dataplane what the backend would hold.
	Text      string    `json:"text"`
	Backend   string    `json:"backend,omitempty"`
	Dataplane string    `json:"dataplane,omitempty"`
	Problems  []Problem `json:"problems,omitempty"`
}

// Print writes the result as text, json or yaml. backend is the name of the backend that made dataplane. Both are empty without a backend.
func (r *Result) Print(out io.Writer, format, backend, dataplane string) error {
	if format == "text" {
		return r.printText(out, backend, dataplane)
	}
	document := Document{r.Assumed, r.LoadBalancers, r.Addresses, r.Output.Model, r.Output.Text, backend, dataplane, r.Problems}
	content, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		if content, err = yaml.JSONToYAML(content); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "%s\n", strings.TrimSuffix(string(content), "\n"))
	return err
}

func (r *Result) printText(out io.Writer, backend, dataplane string) error {
	var b strings.Builder
	for _, assumption := range r.Assumed {
		fmt.Fprintf(&b, "# assumed: %s\n", assumption)
	}
	if err := r.printObjects(&b); err != nil {
		return err
	}
	b.WriteString("---\n# The model, which every backend is given:\n")
	b.WriteString(r.Output.Text)
	if backend != "" {
		fmt.Fprintf(&b, "---\n# What the backend %s would hold:\n%s", backend, dataplane)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *Result) printObjects(b *strings.Builder) error {
	for _, lb := range r.LoadBalancers {
		// Without a cluster, only the addresses of the status are known.
		content, err := yaml.Marshal(lb)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "---\n%s", content)
	}
	for _, a := range r.Addresses {
		content, err := yaml.Marshal(a)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "---\n%s", content)
	}
	return nil
}
